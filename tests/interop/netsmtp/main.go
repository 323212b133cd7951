// Sends messages with Go's net/smtp.  Standard input is a request, standard output what became of it, both JSON.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/smtp"
	"os"
)

type message struct {
	From   string
	To     []string
	Text   string
	Verify []string // asked with VRFY before; an answer that is no success is an error
}

type request struct {
	Addr      string
	Name      string // of the server, in its certificate
	Helo      string
	CA        string // PEM file; "" for no TLS
	Implicit  bool   // TLS from the first octet on instead of STARTTLS
	Mechanism string // "PLAIN", "CRAM-MD5" or "" for no AUTH
	User      string
	Password  string
	SendMail  bool // by smtp.SendMail, which does all by itself, one connection per message
	Messages  []message
}

type outcome struct {
	Errors     []string // one for each message, "" for success; or one for the connection
	Extensions map[string]string
	TLS        string
}

func main() {
	var asked request
	var told outcome
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	var auth smtp.Auth
	switch asked.Mechanism {
	case "PLAIN":
		auth = smtp.PlainAuth("", asked.User, asked.Password, asked.Name)
	case "CRAM-MD5":
		auth = smtp.CRAMMD5Auth(asked.User, asked.Password)
	}
	if asked.SendMail {
		for _, each := range asked.Messages {
			told.add(smtp.SendMail(asked.Addr, auth, each.From, each.To, []byte(each.Text)))
		}
	} else if err := converse(&asked, auth, &told); err != nil {
		told.Errors = []string{err.Error()}
	}
	if err := json.NewEncoder(os.Stdout).Encode(&told); err != nil {
		panic(err)
	}
}

func (told *outcome) add(err error) {
	if err != nil {
		told.Errors = append(told.Errors, err.Error())
	} else {
		told.Errors = append(told.Errors, "")
	}
}

func converse(asked *request, auth smtp.Auth, told *outcome) error {
	client, err := connect(asked)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Hello(asked.Helo); err != nil {
		return err
	}
	if asked.CA != "" && !asked.Implicit {
		config, err := trust(asked)
		if err != nil {
			return err
		}
		if err := client.StartTLS(config); err != nil {
			return err
		}
	}
	if state, ok := client.TLSConnectionState(); ok {
		told.TLS = tls.VersionName(state.Version)
	}
	told.Extensions = map[string]string{}
	for _, name := range []string{"8BITMIME", "AUTH", "PIPELINING", "SIZE", "SMTPUTF8", "STARTTLS"} {
		if ok, parameters := client.Extension(name); ok {
			told.Extensions[name] = parameters
		}
	}
	if auth != nil {
		if err := client.Auth(auth); err != nil {
			return err
		}
	}
	for _, each := range asked.Messages {
		err := send(client, &each)
		told.add(err)
		if err != nil {
			if err := client.Reset(); err != nil {
				return err
			}
		}
	}
	if err := client.Noop(); err != nil {
		return err
	}
	return client.Quit()
}

func connect(asked *request) (*smtp.Client, error) {
	conn, err := dial(asked)
	if err != nil {
		return nil, err
	}
	return smtp.NewClient(conn, asked.Name)
}

func dial(asked *request) (net.Conn, error) {
	if !asked.Implicit {
		return net.Dial("tcp", asked.Addr)
	}
	config, err := trust(asked)
	if err != nil {
		return nil, err
	}
	return tls.Dial("tcp", asked.Addr, config)
}

func trust(asked *request) (*tls.Config, error) {
	pem, err := os.ReadFile(asked.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{ServerName: asked.Name, RootCAs: roots}, nil
}

func send(client *smtp.Client, each *message) error {
	for _, name := range each.Verify {
		if err := client.Verify(name); err != nil {
			return err
		}
	}
	if err := client.Mail(each.From); err != nil {
		return err
	}
	for _, recipient := range each.To {
		if err := client.Rcpt(recipient); err != nil {
			return err
		}
	}
	writer, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := writer.Write([]byte(each.Text)); err != nil {
		return err
	}
	return writer.Close()
}
