// Sends messages with nodemailer.  Standard input is {"transport": {...}, "messages": [{...}, ...]}, in nodemailer's own terms;
// standard output is what became of each message.  All are given to the transport at once.
"use strict";

const fs = require("node:fs");
const nodemailer = require("nodemailer");

const { transport, messages } = JSON.parse(fs.readFileSync(0, "utf8"));
const transporter = nodemailer.createTransport(transport);

function told({ code, responseCode, response, command }) {
  return { code, responseCode, response, command };
}

function sent({ accepted, rejected, response, rejectedErrors }) {
  return { accepted, rejected, response, refusals: (rejectedErrors || []).map(told) };
}

Promise.all(messages.map((message) => transporter.sendMail(message).then(sent, told))).then((results) => {
  transporter.close();
  process.stdout.write(JSON.stringify(results));
});
