// go-smtp, accepting and dropping.  gosmtp PORT [--tls FILE] [--lmtp] [--auth]; GOMAXPROCS as the environment has it.
package main

import (
	"crypto/tls"
	"flag"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

type session struct{}

func (session) Mail(from string, options *smtp.MailOptions) error { return nil }
func (session) Rcpt(to string, options *smtp.RcptOptions) error   { return nil }
func (session) Reset()                                            {}
func (session) Logout() error                                     { return nil }

func (session) Data(reader io.Reader) error {
	_, err := io.Copy(io.Discard, reader)
	return err
}

type user struct{ session }

func (user) AuthMechanisms() []string { return []string{sasl.Plain} }

func (user) Auth(mechanism string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(identity, username, password string) error {
		if username != "user" || password != "secret" {
			return smtp.ErrAuthFailed
		}
		return nil
	}), nil
}

func main() {
	certificate := flag.String("tls", "", "certificate and key")
	lmtp := flag.Bool("lmtp", false, "")
	auth := flag.Bool("auth", false, "")
	port := os.Args[1]
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) {
		if *auth {
			return user{}, nil
		}
		return session{}, nil
	}))
	server.Domain = "localhost"
	server.LMTP = *lmtp
	server.AllowInsecureAuth = *auth
	server.MaxMessageBytes = 64 << 20
	server.MaxRecipients = 1000
	server.ReadTimeout = 300 * time.Second
	server.WriteTimeout = 60 * time.Second
	server.ErrorLog = log.New(io.Discard, "", 0)
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *certificate)
		if err != nil {
			log.Fatal(err)
		}
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(server.Serve(listener))
}
