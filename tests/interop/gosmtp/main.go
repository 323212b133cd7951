// go-smtp, recording.  gosmtp DIR [-lmtp] [-tls FILE] [-implicit] [-auth]: a line with its port, then one for each message, whose octets
// are in a file of DIR.  Recipients whose name begins with nobody, later and full are refused, the last one behind the message by LMTP.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

type arrived struct {
	Sender     string         `json:"sender"`
	Recipients []string       `json:"recipients"`
	Mail       map[string]any `json:"mail"`
	Rcpt       []any          `json:"rcpt"`
	Helo       string         `json:"helo"`
	TLS        bool           `json:"tls"`
	User       string         `json:"user"`
	File       string         `json:"file"`
}

var (
	folder string
	lock   sync.Mutex
	count  int
)

func tell(what any) {
	lock.Lock()
	defer lock.Unlock()
	line, err := json.Marshal(what)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

type session struct {
	conn *smtp.Conn
	user string
	now  arrived
}

func refusal(code int, detail int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, detail / 10, detail % 10}, Message: text}
}

func (s *session) Mail(from string, options *smtp.MailOptions) error {
	_, secure := s.conn.TLSConnectionState()
	s.now = arrived{Sender: from, TLS: secure, User: s.user, Helo: s.conn.Hostname(), Recipients: []string{}, Rcpt: []any{}}
	s.now.Mail = map[string]any{
		"body": options.Body, "size": options.Size, "requiretls": options.RequireTLS, "smtputf8": options.UTF8,
		"ret": options.Return, "envid": options.EnvelopeID, "auth": options.Auth,
	}
	return nil
}

func (s *session) Rcpt(to string, options *smtp.RcptOptions) error {
	switch {
	case strings.HasPrefix(to, "nobody"):
		return refusal(550, 11, "Nobody of that name")
	case strings.HasPrefix(to, "later"):
		return refusal(451, 21, "Come back later")
	}
	params := map[string]any{"notify": options.Notify}
	if options.OriginalRecipient != "" {
		params["orcpt"] = fmt.Sprintf("%s;%s", options.OriginalRecipientType, options.OriginalRecipient)
	}
	if since := options.RequireRecipientValidSince; !since.IsZero() {
		params["rrvs"] = since.Unix()
	}
	s.now.Recipients = append(s.now.Recipients, to)
	s.now.Rcpt = append(s.now.Rcpt, params)
	return nil
}

func (s *session) Data(reader io.Reader) error {
	lock.Lock()
	count++
	s.now.File = filepath.Join(folder, fmt.Sprint(count))
	lock.Unlock()
	file, err := os.Create(s.now.File)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.Copy(file, reader); err != nil {
		return err
	}
	tell(s.now)
	return nil
}

func (s *session) LMTPData(reader io.Reader, status smtp.StatusCollector) error {
	if err := s.Data(reader); err != nil {
		return err
	}
	for _, each := range s.now.Recipients {
		if strings.HasPrefix(each, "full") {
			status.SetStatus(each, refusal(552, 22, "Mailbox full"))
		} else {
			status.SetStatus(each, nil)
		}
	}
	return nil
}

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

type user struct{ session }

func (s *user) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *user) Auth(mechanism string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(identity, username, password string) error {
		if username != "jörg" || password != "größe" {
			return smtp.ErrAuthFailed
		}
		s.user = username
		return nil
	}), nil
}

func main() {
	certificate := flag.String("tls", "", "certificate and key")
	implicit := flag.Bool("implicit", false, "begin with TLS")
	lmtp := flag.Bool("lmtp", false, "")
	auth := flag.Bool("auth", false, "")
	folder = os.Args[1]
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	server := smtp.NewServer(smtp.BackendFunc(func(conn *smtp.Conn) (smtp.Session, error) {
		if *auth {
			return &user{session{conn: conn}}, nil
		}
		return &session{conn: conn}, nil
	}))
	server.Domain = "go.example"
	server.LMTP = *lmtp
	server.MaxMessageBytes = 64 << 20
	server.MaxRecipients = 50
	server.EnableSMTPUTF8 = true
	server.EnableREQUIRETLS = true
	server.EnableBINARYMIME = true
	server.EnableDSN = true
	server.EnableRRVS = true
	server.ErrorLog = log.New(io.Discard, "", 0)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	tell(map[string]int{"port": listener.Addr().(*net.TCPAddr).Port})
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *certificate)
		if err != nil {
			log.Fatal(err)
		}
		config := &tls.Config{Certificates: []tls.Certificate{pair}}
		if *implicit {
			listener = tls.NewListener(listener, config)
		} else {
			server.TLSConfig = config
		}
	}
	log.Fatal(server.Serve(listener))
}
