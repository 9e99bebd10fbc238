"""docs/openapi.yaml: read, with every $ref resolved, and what it says of a value or a reply."""
import json
import os

import jsonschema
import yaml

from world import CHECKOUT

METHODS = ('get', 'head', 'post', 'put', 'patch', 'delete', 'options', 'trace')
# Of HTTP itself (RFC 9110, 9112), which OpenAPI leaves to it.
TRANSPORT_HEADERS = {'connection', 'content-length', 'content-type', 'keep-alive', 'transfer-encoding'}


class Unresolvable(Exception):
    """A $ref that leads nowhere or in a circle."""


def load():
    with open(os.path.join(CHECKOUT, 'docs', 'openapi.yaml'), encoding='utf-8') as file:
        return yaml.load(file, Loader=StrictLoader)


class StrictLoader(yaml.SafeLoader):
    """YAML lets a key stand twice, and times be no strings; JSON, and so OpenAPI, does not."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f'the key {key!r} is no string, or stands twice', node.start_mark)
        return super().construct_mapping(node, deep)


StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != 'tag:yaml.org,2002:timestamp']
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def resolved(document, node, path=()):
    """A copy of `node` without any $ref. Members beside a $ref are added to what it leads to, as 3.1 has it for schemas."""
    if isinstance(node, list):
        return [resolved(document, item, path) for item in node]
    if not isinstance(node, dict):
        return node
    beside = {key: resolved(document, value, path) for key, value in node.items() if key != '$ref'}
    if '$ref' not in node:
        return beside
    reference = node['$ref']
    if reference in path:
        raise Unresolvable(f'{reference}: it leads to itself')
    return {**resolved(document, target_of(document, reference), (*path, reference)), **beside}


def target_of(document, reference):
    target = document
    if not reference.startswith('#/'):
        raise Unresolvable(f'{reference}: not within the document')
    for step in reference[2:].split('/'):
        step = step.replace('~1', '/').replace('~0', '~')
        if not isinstance(target, dict) or step not in target:
            raise Unresolvable(f'{reference}: there is nothing')
        target = target[step]
    return target


def operations(document):
    """(path, method, operation) of all of them."""
    for path, item in document['paths'].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def address_of(item):
    """Which of the two addresses serves this Path Item; an operator's path names its own server."""
    return 'admin' if 'servers' in item else 'plain'


# ---- Values against schemas ----

def events_of(text):
    """The events of a stream as objects; ValueError where it is not as contract 3.7 to 3.10 and 7 have it."""
    if not text.endswith('\n\n'):
        raise ValueError('the stream does not end with an empty line')
    events = []
    for block in text[:-2].split('\n\n'):
        if block == ': ping':
            continue
        event = {}
        for line in block.split('\n'):
            name, colon, value = line.partition(': ')
            if not colon or name in event:
                raise ValueError(f'not a field, or one that stands twice: {line!r}')
            event[name] = value
        events.append(event)
    return events


DECODERS = {
    'application/json': json.loads,
    'application/x-ndjson': lambda text: [json.loads(line) for line in text.split('\n') if line],
    'text/event-stream': events_of,
}


def check_content(validator, content_schema, instance, schema):
    """JSON Schema's contentSchema (Validation, 8.5), which validators leave to their users."""
    if not isinstance(instance, str):
        return
    try:
        decoded = DECODERS[schema['contentMediaType']](instance)
    except ValueError as error:
        yield jsonschema.ValidationError(f'not {schema["contentMediaType"]}: {error}')
        return
    yield from validator.descend(decoded, content_schema)


Validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, {'contentSchema': check_content})


def problems_of(value, schema):
    return [f'{error.json_path}: {error.message}' for error in Validator(schema).iter_errors(value)]


# ---- Replies against what is documented ----

def problems_of_reply(reply, documented, method):
    """What of this reply is not as this Response Object, resolved, says; sentences."""
    problems = header_problems(reply, documented.get('headers', {}))
    contents = documented.get('content', {})
    content_type = (reply.header('Content-Type') or '').split(';')[0]
    if (not contents or method == 'HEAD') and reply.body:
        problems.append('there is a body')
    if reply.status == 204 and reply.header('Content-Length'):
        problems.append('a 204 has no Content-Length (RFC 9110, 8.6)')
    if not contents:
        return problems
    if content_type not in contents:
        problems.append(f'its content type {content_type!r} is not documented')
    elif method != 'HEAD':
        text = reply.body.decode()
        try:
            value = json.loads(text) if content_type == 'application/json' else text
        except ValueError as error:
            return [*problems, f'the body is not JSON: {error}']
        problems += problems_of(value, contents[content_type]['schema'])
    return problems


def header_problems(reply, documented):
    problems = []
    known = {name.lower() for name in documented} | TRANSPORT_HEADERS
    problems += [f'the header {name} is not documented' for name, _ in reply.headers if name.lower() not in known]
    for name, header in documented.items():
        value = reply.header(name)
        if value is None:
            if header.get('required'):
                problems.append(f'the header {name} is missing')
            continue
        if header['schema'].get('type') == 'integer' and value.isdigit():
            value = int(value)
        problems += [f'{name}: {problem}' for problem in problems_of(value, header['schema'])]
    return problems
