// smtp-server, recording.  node record.cjs DIR [--lmtp] [--tls FILE] [--implicit] [--auth]: a line with its port, then one for each message,
// whose octets are in a file of DIR.  Recipients whose name begins with nobody, later and full are refused, the last one behind the
// message by LMTP.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { parseArgs } = require("node:util");
const { SMTPServer } = require("smtp-server");

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    tls: { type: "string" },
    implicit: { type: "boolean" },
    lmtp: { type: "boolean" },
    auth: { type: "boolean" },
  },
});
const [folder] = positionals;
const named = (name, mailbox) => mailbox.address.startsWith(name);
let count = 0;

// fs, as process.stdout may not be done when the reply is sent.
const tell = (what) => fs.writeSync(1, JSON.stringify(what) + "\n");

function refusal(responseCode, text) {
  return Object.assign(new Error(text), { responseCode });
}

const options = {
  name: "node.example",
  lmtp: values.lmtp ?? false,
  secure: values.implicit ?? false,
  logger: false,
  disableReverseLookup: true,
  size: 64 << 20,
  authOptional: true,
  authMethods: ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"],
  disabledCommands: [...(values.tls ? [] : ["STARTTLS"]), ...(values.auth ? [] : ["AUTH"])],
  hideDSN: false,
  hideENHANCEDSTATUSCODES: false,
  hideREQUIRETLS: false,
  useXForward: true,
  onAuth(auth, session, callback) {
    const right =
      auth.method === "XOAUTH2"
        ? auth.accessToken === "token"
        : auth.method === "CRAM-MD5"
          ? auth.validatePassword("größe")
          : auth.password === "größe";
    return right && auth.username === "jörg" ? callback(null, { user: auth.username }) : callback(new Error("no such user"));
  },
  onRcptTo(mailbox, session, callback) {
    if (named("nobody", mailbox)) return callback(refusal(550, "Nobody of that name"));
    return callback(named("later", mailbox) ? refusal(451, "Come back later") : null);
  },
  onData(stream, session, callback) {
    const file = path.join(folder, String(++count));
    const { mailFrom, rcptTo } = session.envelope;
    stream.pipe(fs.createWriteStream(file)).on("finish", () => {
      tell({
        sender: mailFrom.address,
        recipients: rcptTo.map((each) => each.address),
        mail: { ...mailFrom.args, ...session.envelope.dsn, requiretls: session.envelope.requireTLS, smtputf8: session.envelope.smtpUtf8 },
        rcpt: rcptTo.map((each) => ({ ...each.dsn })),
        helo: session.hostNameAppearsAs,
        tls: session.secure,
        user: session.user ?? "",
        xforward: Object.fromEntries(session.xForward),
        file,
      });
      if (!values.lmtp) return callback(null, "Kept");
      return callback(null, rcptTo.map((each) => (named("full", each) ? refusal(552, "Mailbox full") : "Kept")));
    });
  },
};
if (values.tls) {
  options.key = options.cert = fs.readFileSync(values.tls);
}

const server = new SMTPServer(options);
server.on("error", () => {}); // a client that goes away
server.listen(0, "127.0.0.1", () => tell({ port: server.server.address().port }));
