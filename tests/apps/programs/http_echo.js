// An HTTP server that sends back what it gets, and its client.
//
//     http_echo.js serve PORT
//     http_echo.js work  PORT REQUESTS BULK_BYTES
//
// The client keeps ten connections alive, compares every answer, streams one large body through, and
// speaks to the server's net socket directly. It prints a digest, and the rate on the last line.
'use strict';
const crypto = require('crypto');
const http = require('http');
const net = require('net');

const host = '10.77.0.1';
const [what, portText, requestsText, bulkText] = process.argv.slice(2);
const port = Number(portText);

function serve() {
  const server = http.createServer((request, response) => {
    response.writeHead(200, { 'x-path': request.url });
    request.pipe(response);
  });
  const echo = net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
  server.listen(port, host);
  echo.listen(port + 1, host);
  process.on('SIGTERM', () => process.exit(0));
}

function post(agent, path, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, agent, path, method: 'POST' }, (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('end', () => resolve([response.headers['x-path'], Buffer.concat(parts)]));
      response.on('error', reject);
    });
    request.on('error', reject);
    request.end(body);
  });
}

function throughSocket(bytes) {
  return new Promise((resolve, reject) => {
    const hash = crypto.createHash('sha256');
    const socket = net.connect({ host, port: port + 1, allowHalfOpen: true });
    socket.on('data', (part) => hash.update(part));
    socket.on('end', () => resolve(hash.digest('hex')));
    socket.on('error', reject);
    let sent = 0;
    const more = () => {
      while (sent < bytes) {
        const piece = Buffer.alloc(Math.min(65536, bytes - sent), sent % 251);
        sent += piece.length;
        if (!socket.write(piece)) {
          socket.once('drain', more);
          return;
        }
      }
      socket.end();
    };
    socket.on('connect', more);
  });
}

async function work() {
  const requests = Number(requestsText);
  const bulk = Number(bulkText);
  const hash = crypto.createHash('sha256');
  const agent = new http.Agent({ keepAlive: true, maxSockets: 10 });
  for (let turn = 0; turn < requests; turn += 10) {
    const answers = await Promise.all(
      Array.from({ length: 10 }, (_, i) => {
        const body = Buffer.alloc(((turn + i) * 97) % 20000, 'x' + (turn + i));
        return post(agent, '/' + (turn + i), body).then(([path, answer]) => {
          if (!answer.equals(body) || path !== '/' + (turn + i)) throw new Error('another answer');
          return answer;
        });
      }),
    );
    answers.forEach((answer) => hash.update(answer));
  }
  const [, large] = await post(agent, '/large', Buffer.alloc(bulk, 'large'));
  hash.update(large);
  hash.update(await throughSocket(bulk));
  console.log('digest', hash.digest('hex'));
  const one = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const body = Buffer.alloc(100, 'y');
  const start = process.hrtime.bigint();
  for (let turn = 0; turn < requests; turn++) await post(one, '/', body);
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  console.log('requests/s', Math.round(requests / seconds));
  agent.destroy();
  one.destroy();
}

if (what === 'serve') {
  serve();
} else {
  work().catch((error) => {
    console.error(error);
    process.exit(1);
  });
}
