"""One small program each: a server that accepts and drops.  `bench.servers` builds and starts them.

Limits are equal where a program has them: 64 MiB a message, 1000 recipients, 20,000 connections, 300 seconds of silence, no
reverse look-ups, no log.  Each takes its port first; `--tls FILE` is a certificate with its key and offers STARTTLS, `--lmtp`
speaks LMTP, `--auth` lets the user "user" in with the password "secret", in plaintext.
"""
