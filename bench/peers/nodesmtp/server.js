// smtp-server, accepting and dropping.  node server.js PORT [--tls FILE] [--lmtp] [--auth]
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { SMTPServer } from "smtp-server";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { tls: { type: "string" }, lmtp: { type: "boolean" }, auth: { type: "boolean" } },
});

const options = {
  name: "localhost",
  lmtp: values.lmtp ?? false,
  logger: false,
  disableReverseLookup: true,
  size: 64 << 20,
  maxClients: 20000,
  socketTimeout: 300_000,
  authOptional: true,
  allowInsecureAuth: true,
  authMethods: ["PLAIN"],
  disabledCommands: [...(values.tls ? [] : ["STARTTLS"]), ...(values.auth ? [] : ["AUTH"])],
  onAuth(auth, session, callback) {
    if (auth.username !== "user" || auth.password !== "secret") {
      return callback(new Error("no such user"));
    }
    return callback(null, { user: auth.username });
  },
  onMailFrom: (address, session, callback) => callback(),
  onRcptTo: (address, session, callback) => callback(),
  onData(stream, session, callback) {
    stream.on("end", callback);
    stream.resume();
  },
};
if (values.tls) {
  options.key = options.cert = readFileSync(values.tls);
}

const server = new SMTPServer(options);
server.on("error", () => {}); // a client that goes away
server.listen({ port: Number(positionals[0]), host: "127.0.0.1", backlog: 4096 });
