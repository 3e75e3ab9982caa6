// Leads fetch, node:http and node:https through the proxy in HTTPS_PROXY, where Node.js does not do
// so itself (before 22.21, and 23). `mochi-server wrap` preloads this file by NODE_OPTIONS.
"use strict";

const http = require("node:http");
const https = require("node:https");
const net = require("node:net");
const tls = require("node:tls");

// Where undici, which fetch is made of, keeps its dispatcher, in Node.js as in its package.
const DISPATCHER = Symbol.for("undici.globalDispatcher.1");

const withoutBrackets = (host) => host.replace(/^\[|\]$/g, "");
const isDirect = (host) => (process.env.NO_PROXY ?? "").split(",").includes(withoutBrackets(host));

// Calls `done(error, socket)` with a connection through the proxy. `secure`: options of TLS, or null.
function tunnel(host, port, secure, done) {
  const { hostname, port: proxyPort } = new URL(process.env.HTTPS_PROXY);
  const path = `${host.includes(":") ? `[${withoutBrackets(host)}]` : host}:${port}`;
  const call = { host: hostname, port: proxyPort, method: "CONNECT", path };
  // Without an agent: that would lead the call to the proxy through the proxy.
  const request = http.request({ ...call, createConnection: net.connect }).once("error", done);
  request.once("connect", ({ statusCode, statusMessage }, socket) => {
    if (statusCode !== 200) {
      socket.destroy();
      return done(new Error(`${statusCode} ${statusMessage}`));
    }
    if (secure === null) return done(null, socket);
    const inner = tls.connect({ servername: host, ...secure, socket }).once("error", done);
    inner.once("secureConnect", () => done(null, inner.off("error", done)));
  });
  request.end();
}

function leadModules() {
  for (const { Agent } of [http, https]) {
    const connect = Agent.prototype.createConnection;
    Agent.prototype.createConnection = function (options, done) {
      if (options.socketPath || isDirect(options.host)) return connect.apply(this, arguments);
      tunnel(options.host, options.port, Agent === https.Agent ? options : null, done);
    };
  }
}

function leadFetch() {
  globalThis.Response; // the first use of a part of fetch makes the dispatcher
  const dispatcher = globalThis[DISPATCHER];
  if (dispatcher?.constructor.name !== "Agent") return; // Node.js 24.0 leads fetch, and no more
  const led = new dispatcher.constructor({
    connect({ hostname, port, protocol }, done) {
      const secure = { ALPNProtocols: ["http/1.1"] };
      if (protocol === "https:") tunnel(hostname, port || 443, secure, done);
      else tunnel(hostname, port || 80, null, done);
    },
  });
  const dispatch = dispatcher.dispatch.bind(dispatcher);
  dispatcher.dispatch = (options, handler) =>
    isDirect(new URL(options.origin).hostname)
      ? dispatch(options, handler)
      : led.dispatch(options, handler);
}

if (!process.allowedNodeEnvironmentFlags.has("--use-env-proxy")) {
  leadModules();
  leadFetch();
}
