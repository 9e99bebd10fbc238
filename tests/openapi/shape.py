"""What can be told of docs/openapi.yaml without a server: that it is OpenAPI 3.1, and agrees with itself.

The linters of scripts/lint-openapi.sh look closer; this needs nothing from npm.
"""
import json
import re

import jsonschema

from document import METHODS, address_of, operations, problems_of

# The fields of the specification's objects (OpenAPI 3.1.1, section 4.8), as far as the document uses them.
FIELDS = {
    'document': {'openapi', 'info', 'servers', 'paths', 'components', 'security', 'tags'},
    'info': {'title', 'summary', 'description', 'contact', 'version'},
    'path': {'summary', 'description', 'servers', 'parameters', *METHODS},
    'operation': {'tags', 'summary', 'description', 'operationId', 'requestBody', 'responses', 'security'},
    'response': {'description', 'headers', 'content'},
    'header': {'description', 'required', 'schema', 'example'},
    'media type': {'schema', 'example', 'examples'},
    'request body': {'description', 'content', 'required'},
}
REQUIRED = {
    'document': {'openapi', 'info', 'paths'},
    'info': {'title', 'version', 'description'},
    'path': set(),
    'operation': {'operationId', 'summary', 'description', 'tags', 'responses'},
    'response': {'description', 'headers'},
    'header': {'description', 'schema'},
    'media type': {'schema'},
    'request body': {'content'},
}


def fields(kind, node, where):
    """The fields that this kind of object does not know, or lacks."""
    known = {name for name in node if not name.startswith('x-')}
    for name in sorted(known - FIELDS[kind]):
        yield f'{where}: a {kind} has no field {name}'
    for name in sorted(REQUIRED[kind] - known):
        yield f'{where}: {name} is missing'


def schemas_within(node):
    """All values of `schema` members, and the named schemas."""
    if isinstance(node, list):
        for item in node:
            yield from schemas_within(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == 'schema':
                yield value
            elif key == 'schemas':
                yield from value.values()
            yield from schemas_within(value)


def media_types(contents, where):
    for name, content in contents.items():
        place = f'{where} {name}'
        yield from fields('media type', content, place)
        examples = [example['value'] for example in content.get('examples', {}).values()]
        if 'example' in content:
            examples.append(content['example'])
        if not examples:
            yield f'{place}: there is no example'
        for example in examples:
            for problem in problems_of(example, content['schema']):
                yield f'{place}: the example {json.dumps(example)[:100]}: {problem}'


def response_problems(response, where, address):
    yield from fields('response', response, where)
    always = {'plain': 'X-Request-Id', 'admin': 'Cache-Control'}[address]
    if always not in response['headers']:
        yield f'{where}: {always} is missing'
    for name, header in response['headers'].items():
        yield from fields('header', header, f'{where} {name}')
        if 'example' in header:
            yield from (f'{where} {name}: the example: {problem}' for problem in problems_of(header['example'], header['schema']))
    yield from media_types(response.get('content', {}), where)


def operation_problems(document):
    names = []
    tags = {tag['name'] for tag in document['tags']}
    for path, method, operation in operations(document):
        where = f'{method.upper()} {path}'
        yield from fields('operation', operation, where)
        names.append(operation['operationId'])
        yield from (f'{where}: the tag {tag} is not declared' for tag in operation['tags'] if tag not in tags)
        if 'requestBody' in operation:
            yield from fields('request body', operation['requestBody'], where)
            yield from media_types(operation['requestBody']['content'], where)
        for status, response in operation['responses'].items():
            if not re.fullmatch(r'[1-5](\d\d|XX)|default', status):
                yield f'{where}: {status} is no status'
            yield from response_problems(response, f'{where} {status}', address_of(document['paths'][path]))
    yield from (f'{name}: two operations have this id' for name in set(names) if names.count(name) > 1)


def references_within(node):
    if isinstance(node, dict):
        if '$ref' in node:
            yield node['$ref']
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from references_within(item)


def unused(raw):
    used = set(references_within(raw))
    for kind, parts in raw['components'].items():
        if kind == 'securitySchemes':
            continue
        for name in parts:
            if f'#/components/{kind}/{name}' not in used:
                yield f'components/{kind}/{name} is used nowhere'


def shape_problems(raw, document):
    """Sentences; none if all is well."""
    if not re.fullmatch(r'3\.1\.\d+', document['openapi']):
        yield f'openapi is {document["openapi"]}'
    yield from fields('document', document, 'the document')
    yield from fields('info', document['info'], 'info')
    for path, item in document['paths'].items():
        yield from fields('path', item, path)
        if not path.startswith('/') or path != '/' and path.endswith('/'):
            yield f'{path}: not a path without its last slash'
    yield from operation_problems(document)
    for name in ('methods', 'paths'):
        yield from response_problems(document['x-other-' + name], 'x-other-' + name, 'plain')
        yield from response_problems(document['x-admin-other-' + name], 'x-admin-other-' + name, 'admin')
    for schema in schemas_within(document):
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            yield f'not a JSON Schema: {json.dumps(schema)[:100]}: {error.message}'
    yield from unused(raw)
