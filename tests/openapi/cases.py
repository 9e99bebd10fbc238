"""The requests that provoke each documented status, as a table."""
import json
import time
from dataclasses import dataclass
from typing import Callable

from document import address_of
from document import operations as operations_of
from world import PATIENCE_S, Answer, request_bytes

BODIES = {
    '/llmchat': {'appID': 'app', 'model': 'm', 'messages': [{'role': 'user', 'content': 'Hello'}]},
    '/llmprep': {'appID': 'app', 'messages': [{'role': 'system', 'content': 'Be brief.'}]},
    '/llmprompt': {'model': 'm', 'prompt': 'Hello'},
    '/postchatt': {'name': 'ada', 'message': 'Hello, all'},
}
# The database of the worlds refuses this text: see openapi_test.py.
REFUSED_TEXT = 'refused by the database'


@dataclass
class Case:
    """One request. `send(chatterd, path)` makes it, with the form of the path that is tried, and returns the Reply."""
    method: str
    path: str
    status: int
    why: str
    send: Callable
    world: str = 'plain'
    part: bytes = b''  # that the body must hold, where one status has several faces


def exchange(chatterd, method, path, body=None, headers=(), version='HTTP/1.1'):
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    return Answer(chatterd.port, method, request_bytes(method, path, body, headers, version)).whole()


def forms(path):
    """With and without the last slash (contract 1.1)."""
    return [path] if path == '/' else [path, path + '/']


def usual(method, path):
    """The request that is answered with success."""
    return lambda chatterd, form: exchange(chatterd, method, form, BODIES.get(path) if method == 'POST' else None)


def sends(method, body=None, query='', **more):
    return lambda chatterd, form: exchange(chatterd, method, form + query, body, **more)


def with_fields(path, **fields):
    return sends('POST', {**BODIES[path], **fields})


def until_refused(method, path):
    """Sends until the rate is used up, which a request or two can have left."""

    def send(chatterd, form):
        for _ in range(20):
            reply = usual(method, path)(chatterd, form)
            if reply.status == 429:
                break
        return reply

    return send


def beside_a_stream(path, **fields):
    """Sends while an answer for the appID "held" is being streamed."""
    held = json.dumps({**BODIES['/llmchat'], 'appID': 'held', 'model': 'holds'}).encode()

    def send(chatterd, form):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with Answer(chatterd.port, 'POST', request_bytes('POST', '/llmchat', held)) as stream:
                if stream.begun():  # else the one before is still on its way out
                    return exchange(chatterd, 'POST', form, {**BODIES[path], **fields})
        raise RuntimeError('no stream could be begun')

    return send


class LateBodies:
    """Requests whose bodies do not come, all sent at once, since the server looks for late ones once a second."""

    def __init__(self, operations):
        self.requests = [(method, form) for path, method in operations for form in forms(path)]
        self.answers = {}

    def sends(self, method):
        def send(chatterd, form):
            if not self.answers:
                self.answers = {(each, at): self.ask(chatterd, each, at) for each, at in self.requests}
            return self.answers[method, form].whole()

        return send

    @staticmethod
    def ask(chatterd, method, form):
        return Answer(chatterd.port, method, request_bytes(method, form, headers=[('Content-Length', '5')]))


def cases_of_framing(method, path, world):
    """What any route of both addresses answers to what is no request."""
    yield Case(method, path, 400, 'to two lengths', sends(method, headers=[('Content-Length', '0')] * 2), world)
    yield Case(method, path, 413, 'to a body that is too large', sends(method, headers=[('Content-Length', '4194305')]), world)
    yield Case(method, path, 414, 'to a target that is too long', sends(method, query='?' + 8000 * 'a'), world)
    yield Case(method, path, 415, 'to a compressed body', sends(method, b'{}', headers=[('Content-Encoding', 'gzip')]), world)
    multipart = [('Content-Type', 'multipart/form-data; boundary=x')]
    yield Case(method, path, 415, 'to multipart', sends(method, b'{}', headers=multipart), world)
    yield Case(method, path, 417, 'to another expectation', sends(method, b'', headers=[('Expect', 'a wonder')]), world)
    yield Case(method, path, 431, 'to headers that are too large', sends(method, headers=[('X-Large', 33000 * 'a')]), world)
    yield Case(method, path, 431, 'to too many headers', sends(method, headers=[('X-Small', 'a')] * 101), world)
    yield Case(method, path, 505, 'to HTTP/2.0', sends(method, version='HTTP/2.0'), world)


def cases_of_http(method, path, late):
    """What any route of the public address answers, before or instead of its own work."""
    yield from cases_of_framing(method, path, 'plain')
    yield Case(method, path, 408, 'to a body that does not come', late.sends(method), 'hasty')
    yield Case(method, path, 429, 'beyond --rate', until_refused(method, path), 'rated')
    if method == 'POST':
        yield Case(method, path, 411, 'without a length', sends(method))
    if path != '/' or method == 'OPTIONS':
        yield Case(method, path, 401, 'without a key', usual(method, path), 'keyed')
        key = sends(method, BODIES.get(path) if method == 'POST' else None, headers=[('Authorization', 'Bearer the key')])
        yield Case(method, path, 204 if method == 'OPTIONS' else 200, 'with a key', key, 'keyed')
    else:
        yield Case(method, path, 200, 'without a key', usual(method, path), 'keyed')


def cases_of_database(method, path):
    yield Case(method, path, 500, 'when the table is gone', usual(method, path), 'damaged')
    yield Case(method, path, 503, 'when the database is away', usual(method, path), 'no-database')


CHAT, PREP, PROMPT, POST = '/llmchat', '/llmprep', '/llmprompt', '/postchatt'
REFUSED_MESSAGES = [{'role': 'user', 'content': REFUSED_TEXT}]

OWN_CASES = [
    Case('POST', CHAT, 200, 'with an error event when the answer breaks off', with_fields(CHAT, model='breaks'), part=b'event: error\n'),
    Case('POST', CHAT, 200, 'with one event for stream:false', with_fields(CHAT, stream=False), part=b'"done":true'),
    Case('POST', CHAT, 400, 'when the database refuses a value', with_fields(CHAT, messages=REFUSED_MESSAGES)),
    Case('POST', CHAT, 400, 'when Ollama refuses', with_fields(CHAT, model='refused')),
    Case('POST', CHAT, 404, 'when Ollama has no such model', with_fields(CHAT, model='no-such-model')),
    Case('POST', CHAT, 409, 'beside a stream of the same appID', beside_a_stream(CHAT, appID='held')),
    Case('POST', CHAT, 422, 'without an appID', sends('POST', {'model': 'm'})),
    Case('POST', CHAT, 422, 'to what is not JSON', sends('POST', b'{')),
    Case('POST', CHAT, 429, 'beyond --streams-per-client', beside_a_stream(CHAT), 'one-each'),
    Case('POST', CHAT, 502, 'when Ollama fails', with_fields(CHAT, model='failing')),
    Case('POST', CHAT, 502, 'to a status of Ollama that is not expected', with_fields(CHAT, model='teapot')),
    Case('POST', CHAT, 502, 'when Ollama hangs up', with_fields(CHAT, model='leaves')),
    Case('POST', CHAT, 502, 'when Ollama is away', usual('POST', CHAT), 'no-ollama'),
    Case('POST', CHAT, 503, 'when Ollama is busy', with_fields(CHAT, model='busy')),
    Case('POST', CHAT, 503, 'beyond --max-streams', beside_a_stream(CHAT), 'narrow'),
    Case('POST', PREP, 400, 'when the database refuses a value', with_fields(PREP, messages=REFUSED_MESSAGES)),
    Case('POST', PREP, 409, 'beside a stream of the same appID', beside_a_stream(PREP, appID='held')),
    Case('POST', PREP, 422, 'without an appID', sends('POST', {})),
    Case('POST', PROMPT, 200, 'with one document for stream:false', with_fields(PROMPT, stream=False), part=b'"done":true'),
    Case('POST', PROMPT, 200, 'with an error line when the answer breaks off', with_fields(PROMPT, model='breaks'), part=b'\n{"error":'),
    Case('POST', PROMPT, 400, 'when Ollama refuses', with_fields(PROMPT, model='refused')),
    Case('POST', PROMPT, 404, 'when Ollama has no such model', with_fields(PROMPT, model='no-such-model')),
    Case('POST', PROMPT, 418, 'and any other status that is Ollama\'s', with_fields(PROMPT, model='teapot')),
    Case('POST', PROMPT, 429, 'beyond --streams-per-client', beside_a_stream(PROMPT), 'one-each'),
    Case('POST', PROMPT, 500, 'when Ollama fails', with_fields(PROMPT, model='failing')),
    Case('POST', PROMPT, 502, 'when Ollama is away', usual('POST', PROMPT), 'no-ollama'),
    Case('POST', PROMPT, 503, 'when Ollama is busy', with_fields(PROMPT, model='busy')),
    Case('POST', PROMPT, 503, 'beyond --max-streams', beside_a_stream(PROMPT), 'narrow'),
    Case('POST', POST, 400, 'when the database refuses a value', with_fields(POST, message=REFUSED_TEXT)),
    Case('POST', POST, 422, 'without a message', sends('POST', {'name': 'ada'})),
]


def cases(document):
    """All of them, for the operations of this document."""
    operations = [(path, method.upper(), address_of(document['paths'][path])) for path, method, _ in operations_of(document)]
    late = LateBodies([(path, method) for path, method, address in operations if address == 'plain'])
    for path, method, address in operations:
        yield Case(method, path, 204 if method == 'OPTIONS' else 200, 'to what it is for', usual(method, path), address)
        if address == 'admin':
            yield from cases_of_framing(method, path, address)
            status = 503 if path == '/readyz' else 200
            yield Case(method, path, status, 'when the database is away', usual(method, path), 'admin-no-database')
            continue
        yield from cases_of_http(method, path, late)
        if path in (CHAT, PREP, POST) and method == 'POST' or path == '/getchatts' and method != 'OPTIONS':
            yield from cases_of_database(method, path)
    yield from OWN_CASES


# ---- Bodies that a route takes, and bodies that it does not ----

MESSAGE = {'role': 'user', 'content': 'Hello'}
MESSAGES_LISTS = [
    None, [], [MESSAGE], [MESSAGE, {'role': 'tool', 'content': ''}], [{**MESSAGE, 'content': 'é 世界 👩‍🚀 \u0001'}],
    [{'role': 'user', 'images': ['aGVsbG8=']}], [{'role': 'user', 'images': [], 'content': None}],
    [{'role': 'assistant', 'tool_calls': []}], [{**MESSAGE, 'more': {'a': None}}],
    {}, 'text', 1, ['text'], [None], [{}], [{'content': 'x'}], [{'role': 'user'}], [{**MESSAGE, 'role': ''}], [{**MESSAGE, 'role': None}],
    [{**MESSAGE, 'role': 5}], [{**MESSAGE, 'content': None}], [{**MESSAGE, 'content': 5}], [{**MESSAGE, 'content': ['x']}],
    [{'role': 'user', 'images': None}], [{'role': 'user', 'tool_calls': None}], [{'role': 'user', 'images': [], 'content': 5}],
    [{**MESSAGE, 'content': 'a\u0000b'}], [{**MESSAGE, 'role': '\u0000'}], [MESSAGE, {}],
]
APP_IDS = ['a', ' ', 64 * 'é', '', 65 * 'a', 65 * 'é', 'a\u0000', None, 5, True, ['a'], {}]


def bodies(path):
    good = BODIES[path]
    yield from ([], 'text', 5, None, True, {}, good, {**good, 'options': {'temperature': 0}})
    for field in good:
        yield {key: value for key, value in good.items() if key != field}
    if path == POST:
        yield from ({'username': 'ada', 'message': 'x'}, {**good, 'username': 5}, {**good, 'name': None, 'username': 'ada'})
        for value in ('', 'a\u0000', None, 5, []):
            yield from ({**good, 'name': value}, {**good, 'message': value}, {'username': value, 'message': 'x'})
        return
    for messages in MESSAGES_LISTS:
        yield {**good, 'messages': messages}
    for app_id in APP_IDS:
        yield {**good, 'appID': app_id}
    if path == CHAT:
        for value in ('', 'm\u0000', None, 5, ['m']):
            yield {**good, 'model': value}
        for value in (True, False, None, 'true', 0):
            yield {**good, 'stream': value}
