"""What chatterd needs around it: databases, an Ollama that does as the model's name says, an HTTP client.

Everything listens on free ports of 127.0.0.1 and ends with the test.
"""
import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass

PATIENCE_S = 30  # of a test for a sanitizer build on a busy machine; only one that fails uses it up
CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CHATTERD = os.environ.get('CHATTERD_BIN') or os.path.join(CHECKOUT, 'chatterd')


# ---- Ollama ----

# What Ollama answers to a model of this name: its status, and its error text (its API documentation, "Errors").
REFUSALS = {
    'refused': (400, 'model is required'),
    'no-such-model': (404, "model 'no-such-model' not found"),
    'teapot': (418, 'no coffee here'),
    'failing': (500, 'llama runner process has terminated'),
    'busy': (503, 'server busy, please try again.  maximum pending requests exceeded'),
}


class OllamaHandler(http.server.BaseHTTPRequestHandler):
    """Other models: `breaks` off after one line, `leaves` before it, `holds` on after it; any other answers."""
    protocol_version = 'HTTP/1.1'
    released = threading.Event()

    def log_message(self, format, *args):  # pylint: disable=redefined-builtin
        pass

    def do_GET(self):
        self.reply(200, json.dumps({'version': '0.0.0'}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        model = body.get('model', '')
        if model in REFUSALS:
            status, text = REFUSALS[model]
            return self.reply(status, json.dumps({'error': text}))
        if model == 'leaves':
            self.close_connection = True
            return None
        lines = [self.line(body, text, False) for text in ('Good', ' day')] + [self.line(body, '', True)]
        if body.get('stream') is False:
            return self.reply(200, self.line(body, 'Good day', True).strip())
        self.send_response(200)
        self.send_header('Content-Type', 'application/x-ndjson')
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        self.chunk(lines[0])
        if model == 'holds':
            self.released.wait(PATIENCE_S)
        self.close_connection = model in ('holds', 'breaks')
        if not self.close_connection:
            self.chunk(''.join(lines[1:]))
            self.chunk('')
        return None

    def chunk(self, text):
        self.wfile.write(f'{len(text):x}\r\n{text}\r\n'.encode())

    def line(self, body, text, done):
        line = {'model': body.get('model', ''), 'created_at': '2026-11-22T16:58:56.966342Z'}
        if self.path == '/api/chat':
            line['message'] = {'role': 'assistant', 'content': text}
        else:
            line['response'] = text
        line['done'] = done
        if done:
            line['done_reason'] = 'stop'
        return json.dumps(line, separators=(',', ':')) + '\n'

    def reply(self, status, text):
        self.send_response(status)
        self.send_header('Content-Type', 'application/json; charset=utf-8')
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class OllamaServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # chatterd, or what it does for its client, has ended
            super().handle_error(request, client_address)


@contextlib.contextmanager
def ollama():
    """Yields its URL."""
    server = OllamaServer(('127.0.0.1', 0), OllamaHandler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        OllamaHandler.released.set()
        server.shutdown()


# ---- PostgreSQL ----

class Database:
    """A database of its own in the cluster that CHATTERD_TEST_DB names, a superuser's connection string."""

    def __init__(self, name):
        self.name = f'openapi_{os.getpid()}_{name}'
        self.conninfo = re.sub(r'\bdbname=\S+', f'dbname={self.name}', os.environ['CHATTERD_TEST_DB'])
        psql(os.environ['CHATTERD_TEST_DB'], f'create database {self.name}')

    def run(self, sql):
        psql(self.conninfo, sql)

    def drop(self):
        psql(os.environ['CHATTERD_TEST_DB'], f'drop database {self.name} with (force)')


def psql(conninfo, sql):
    subprocess.run(['psql', '--no-psqlrc', '-q', '-v', 'ON_ERROR_STOP=1', '-d', conninfo, '-c', sql],
                   check=True, stdin=subprocess.DEVNULL)


# ---- chatterd ----

@dataclass
class Address:
    port: int


class Chatterd:
    """A running chatterd without TLS."""

    def __init__(self, folder, name, conninfo, ollama_url, options):
        self.log_path = os.path.join(folder, name + '.log')
        environment = {k: v for k, v in os.environ.items() if not k.startswith(('CHATTERD_', 'PG'))}
        with open(self.log_path, 'wb') as log:
            self.process = subprocess.Popen(
                [CHATTERD, '--http', '--host', '127.0.0.1', '--port', '0', '--db', conninfo, '--ollama', ollama_url,
                 '--state-dir', os.path.join(folder, name), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            self.port = int(self.wait_for_log(r'listening on http://127\.0\.0\.1:(\d+)'))
        except RuntimeError:
            self.stop()
            raise

    def wait_for_log(self, pattern):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with open(self.log_path, encoding='utf-8') as log:
                found = re.search(pattern, log.read())
            if found:
                return found[1]
            time.sleep(0.02)
        with open(self.log_path, encoding='utf-8') as log:
            raise RuntimeError(f'chatterd never logged {pattern}:\n{log.read()}')

    def admin(self):
        """The operator's address; for one that was started with --admin 127.0.0.1:0."""
        return Address(int(self.wait_for_log(r'event=admin_listening url=http://127\.0\.0\.1:(\d+)')))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def folder():
    """A folder that the user chatterd becomes can reach."""
    with tempfile.TemporaryDirectory(prefix='openapi-test.') as path:
        os.chmod(path, 0o755)
        yield path


# ---- The client ----

class Reply:
    def __init__(self, response, body):
        self.status = response.status
        self.headers = response.getheaders()
        self.body = body

    def header(self, name):
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return values[0] if values else None

    def __str__(self):
        return f'{self.status} {self.headers} {self.body[:500]!r}'


def request_bytes(method, path, body=None, headers=(), version='HTTP/1.1'):
    """A request, with a Content-Length if it has a body and `headers` say nothing of it."""
    names = {name.lower() for name, _ in headers}
    lines = [f'{method} {path} {version}', 'Host: localhost']
    lines += [f'{name}: {value}' for name, value in headers]
    content = b'' if body is None else body
    if body is not None and not names & {'content-length', 'transfer-encoding'}:
        lines.append(f'Content-Length: {len(content)}')
    return '\r\n'.join(lines).encode() + b'\r\n\r\n' + content


class Answer:
    """A request that was sent, and its answer as it comes."""

    def __init__(self, port, method, sent):
        self.socket = socket.create_connection(('127.0.0.1', port), PATIENCE_S)
        self.socket.sendall(sent)
        self.response = http.client.HTTPResponse(self.socket, method=method)

    def begun(self):
        """Waits for the headers; True for a 200."""
        self.response.begin()
        return self.response.status == 200

    def whole(self):
        with self:
            self.response.begin()
            return Reply(self.response, self.response.read())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.response.close()
        self.socket.close()
