#!/usr/bin/python3 -B
"""docs/openapi.yaml and a running chatterd agree; called by scripts/test.sh, which sets CHATTERD_TEST_DB.

Prints a line "ok: NAME" or "FAILED: NAME" for each test.
    openapi_test.py [PATTERN]     only tests whose name matches, such as '*llmchat*'
"""
import contextlib
import fnmatch
import glob
import hashlib
import os
import re
import subprocess
import sys
import traceback

import document as documents
import world
from cases import BODIES, REFUSED_TEXT, bodies, cases, exchange, forms
from shape import shape_problems

PREFIX = 'docs/openapi.yaml: '


class Suite:
    def __init__(self, pattern):
        self.pattern = pattern
        self.failed = 0

    def test(self, name, run):
        """`run()` returns what is wrong, as sentences."""
        name = PREFIX + name
        if self.pattern and not fnmatch.fnmatchcase(name, self.pattern):
            return
        try:
            problems = list(run())
        except Exception:  # pylint: disable=broad-except
            problems = traceback.format_exc().splitlines()
        for problem in problems:
            print('  ' + problem)
        print(('FAILED: ' if problems else 'ok: ') + name, flush=True)
        self.failed += bool(problems)


class Worlds:
    """The chatterds that the cases ask for by name, each started when it is first asked for; of those whose name
    begins with "admin" the operator's address."""

    def __init__(self, stack, folder):
        self.stack = stack
        self.folder = folder
        self.running = {}
        self.ollama_url = stack.enter_context(world.ollama())

    def __getitem__(self, name):
        if name not in self.running:
            self.running[name] = self.start(name)
        return self.running[name]

    def start(self, name):
        if name.startswith('admin'):
            return self.start_public(name).admin()
        return self.start_public(name)

    def start_public(self, name):
        if name.endswith('no-database'):
            return self.chatterd(name, 'host=127.0.0.1 port=1 user=a dbname=a', self.ollama_url, self.options_of(name))
        database = world.Database(name.replace('-', '_'))
        self.stack.callback(database.drop)
        ollama_url = 'http://127.0.0.1:1' if name == 'no-ollama' else self.ollama_url
        running = self.chatterd(name, database.conninfo, ollama_url, self.options_of(name))
        if name == 'damaged':
            database.run('alter table chatts rename to gone')
        else:
            database.run(f"alter table chatts add constraint no check (message <> '{REFUSED_TEXT}')")
        return running

    def options_of(self, name):
        if name == 'keyed':
            path = os.path.join(self.folder, 'keys')
            with open(path, 'w', encoding='ascii') as file:
                file.write(hashlib.sha256(b'the key').hexdigest() + '\n')
            return ['--api-keys', path]
        return {
            'plain': ['--turn-wait', '1'],
            'admin': ['--admin', '127.0.0.1:0'],
            'admin-no-database': ['--admin', '127.0.0.1:0'],
            'hasty': ['--body-timeout', '0.1'],
            'rated': ['--rate', '1'],
            'narrow': ['--max-streams', '1'],
            'one-each': ['--streams-per-client', '1'],
        }.get(name, [])

    def chatterd(self, name, conninfo, ollama_url, options):
        running = world.Chatterd(self.folder, name, conninfo, ollama_url, options)
        self.stack.callback(running.stop)
        return running


class Agreement:
    """The document, and the statuses that have been seen of what it documents."""

    def __init__(self, worlds):
        self.raw = documents.load()
        self.document = documents.resolved(self.raw, self.raw)
        self.worlds = worlds
        self.seen = set()
        self.operations = [(path, method.upper()) for path, method, _ in documents.operations(self.document)]

    def responses(self, method, path):
        return self.document['paths'][path][method.lower()]['responses']

    def check_case(self, case):
        for form in forms(case.path):
            reply = case.send(self.worlds[case.world], form)
            if reply.status != case.status:
                yield f'{form}: wanted {case.status}, got {reply}'
            if case.part not in reply.body:
                yield f'{form}: there is no {case.part!r} in {reply}'
            for problem in self.problems_of(reply, case.method, case.path):
                yield f'{form}: {problem} in {reply}'

    def problems_of(self, reply, method, path):
        responses = self.responses(method, path)
        keys = [key for key in (str(reply.status), f'{reply.status // 100}XX', 'default') if key in responses]
        if not keys:
            return [f'{reply.status} is not documented']
        key = keys[0]
        self.seen.add((path, method, key))
        return documents.problems_of_reply(reply, responses[key], method)

    def other(self, path_or_methods, address):
        """What is documented of the other paths, or the other methods, at this address."""
        return self.document[('x-admin-other-' if address == 'admin' else 'x-other-') + path_or_methods]

    def check_methods(self, path):
        """Other methods than the documented ones are refused, and Allow names exactly those."""
        documented = {method for known, method in self.operations if known == path}
        address = documents.address_of(self.document['paths'][path])
        for form in forms(path):
            for method in {'GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'TRACE', 'PROPFIND'} - documented:
                reply = exchange(self.worlds[address], method, form)
                if reply.status != 405:
                    yield f'{method} {form}: not documented, but {reply}'
                for problem in documents.problems_of_reply(reply, self.other('methods', address), method):
                    yield f'{method} {form}: {problem} in {reply}'
                yield from self.check_allow(reply, documented)
            yield from self.check_allow(exchange(self.worlds[address], 'OPTIONS', form), documented)

    @staticmethod
    def check_allow(reply, documented):
        allowed = set((reply.header('Allow') or '').split(', '))
        if allowed != documented:
            yield f'Allow is {sorted(allowed)}, the documented methods are {sorted(documented)}'

    def check_no_other_path(self, address):
        """Whatever looks like a path in the sources is a documented one, or is none of this address."""
        known = {path for path, item in self.document['paths'].items() if documents.address_of(item) == address}
        tried = paths_in_sources() | set(self.document['paths']) | {'/nothing', '/llmchatx', '/getchatts/x', '/openapi.yaml'}
        if not known & paths_in_sources():
            yield 'no path was found in the sources: this test sees nothing any more'
        for path in sorted(tried - known):
            for method in ('GET', 'HEAD') if address == 'admin' else ('GET', 'HEAD', 'POST', 'OPTIONS', 'PUT'):
                reply = exchange(self.worlds[address], method, path, b'' if method == 'POST' else None)
                if reply.status != 404:
                    yield f'{method} {path}: not documented, but {reply}'
                for problem in documents.problems_of_reply(reply, self.other('paths', address), method):
                    yield f'{method} {path}: {problem} in {reply}'

    def check_request_examples(self, path, method, operation):
        for media_type, content in operation['requestBody']['content'].items():
            for name, example in content['examples'].items():
                reply = exchange(self.worlds['plain'], method.upper(), path, example['value'], [('Content-Type', media_type)])
                if reply.status != 200:
                    yield f'the example {name}: {reply}'

    def check_bodies(self, path):
        """What the schema takes is taken, and what it does not is a 422."""
        schema = self.document['paths'][path]['post']['requestBody']['content']['application/json']['schema']
        for body in bodies(path):
            problems = documents.problems_of(body, schema)
            reply = exchange(self.worlds['plain'], 'POST', path, documents.json.dumps(body).encode())
            if (reply.status == 422) != bool(problems):
                yield f'{body}: by the document {problems or "right"}, by chatterd {reply}'

    def check_all_seen(self):
        for path, method in self.operations:
            for status in self.responses(method, path):
                if (path, method, status) not in self.seen:
                    yield f'{method} {path}: {status} is documented, but no request of this test provoked it'

    def check_version(self):
        printed = subprocess.run([world.CHATTERD, '--version'], check=True, capture_output=True, text=True).stdout.split()[-1]
        if printed != self.document['info']['version']:
            yield f'info.version is {self.document["info"]["version"]}, chatterd --version says {printed}'


def paths_in_sources():
    found = set()
    for name in glob.glob(os.path.join(world.CHECKOUT, '*.[ch]pp')):
        with open(name, encoding='utf-8') as file:
            found |= {path.rstrip('/') or '/' for path in re.findall(r'"(/[A-Za-z0-9_./-]*)\??"', file.read())}
    return found


def run_all(suite, agreement):
    suite.test('it has the shape of OpenAPI 3.1, and its examples match its schemas',
               lambda: shape_problems(agreement.raw, agreement.document))
    suite.test('its version is chatterd\'s', agreement.check_version)
    for case in cases(agreement.document):
        suite.test(f'{case.method} {case.path} gives {case.status} {case.why}', lambda case=case: agreement.check_case(case))
    for path in agreement.document['paths']:
        suite.test(f'{path} takes the documented methods, and no other', lambda path=path: agreement.check_methods(path))
    for address in ('plain', 'admin'):
        suite.test(f'there is no path but the documented ones ({address})',
                   lambda address=address: agreement.check_no_other_path(address))
    for path, method, operation in documents.operations(agreement.document):
        if 'requestBody' in operation:
            suite.test(f'the examples of {path} are accepted',
                       lambda args=(path, method, operation): agreement.check_request_examples(*args))
    for path in BODIES:
        if path != '/llmprompt':  # whose bodies Ollama judges
            suite.test(f'{path} takes the bodies that its schema takes, and no other', lambda path=path: agreement.check_bodies(path))
    if not suite.pattern:
        suite.test('each documented status was given in this run', agreement.check_all_seen)


def main():
    suite = Suite(sys.argv[1] if len(sys.argv) > 1 else '')
    with contextlib.ExitStack() as stack:
        run_all(suite, Agreement(Worlds(stack, stack.enter_context(world.folder()))))
    return 1 if suite.failed else 0


sys.exit(main())
