#!/usr/bin/env python3
"""Reads clients' access tokens from Perennial's table, sealed or plain, with `joserfc` and `boto3`, and keeps them in memory for
as long as they are good.

Copy it: it is meant to become a part of your program. `python read_sealed_token.py --help` says how it is called. It prints
{"access_token": ..., "expires_at": ..., "sealed": ...}, or says on standard error why not and ends with 1. Without a client's id
it reads ids from standard input and answers each with a line, as a service would use it: {"client": ..., "access_token": ...} or
{"client": ..., "error": ...}. Region, credentials and endpoints are found as boto3 finds them: AWS_REGION,
AWS_ENDPOINT_URL_DYNAMODB, AWS_ENDPOINT_URL_KMS.
"""

import argparse
import base64
import binascii
import hashlib
import json
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

# The one thing that a reader may open, and the family of keys that opens it.
ATTRIBUTE = "access_token"
FAMILY = "at"
HEADER = {"alg": str, "enc": str, "kid": str, "tbl": str, "cid": str, "att": str, "ver": int, "iat": int}
# How long an unwrapped key is used before KMS is asked again: what revoking a right takes.
KEY_LIFETIME = 600.0
# A token in memory is asked for again soon after its refresh was due, and after a minute in any case ...
CONFIRM = 60.0
REFRESH_TAKES = 1.5
# ... and what is overdue, or has failed, no more often than this.
PACE = 1.0
# A table that does not answer is given up on while the token in memory is good.
DYNAMODB = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 2})


class Registry(jwe.JWERegistry):
    """Our two algorithms, and sizes up to what a table's item can hold."""

    max_protected_header_length = 4096
    max_ciphertext_length = 600_000


# The header's members of our own are checked below: joserfc knows the registered ones alone.
REGISTRY = Registry(algorithms=["A256KW", "A256GCM"], strict_check_header=False)


class Refused(Exception):
    """Why there is no token. Never holds one."""


class NoToken(Refused):
    """There is no good token: the table says so."""


def is_sealed(text):
    """Whether Perennial sealed this text. A provider's own tokens may be JWE, too: their headers lack our members."""
    header = _header(text)
    return header is not None and {"tbl", "cid", "att"} <= header.keys()


def open_sealed(sealed, place, key_of):
    """Opens a sealed access token, read from the item at `place`: table, client, and its `tok_gen` as version.

    What is sealed is opened where it belongs and nowhere else. Without these comparisons, whoever may write to the table could
    give you the token of another. `key_of` gives the key of a name.
    """
    header = _header(sealed)
    if header is None:
        raise Refused("not a sealed value")
    # `type` and not `isinstance`: True is an int.
    if {name: type(value) for name, value in header.items()} != HEADER:
        raise Refused("not a sealed value of ours: its header differs")
    if (header["alg"], header["enc"]) != ("A256KW", "A256GCM"):
        raise Refused("its algorithms are not ours")
    expected = {"tbl": place["table"], "cid": place["client"], "att": ATTRIBUTE, "ver": place["version"]}
    for name, value in expected.items():
        if header[name] != value:
            raise Refused(f"belongs to something else: `{name}` of its header differs")
    if not header["kid"].startswith("local/") and _key_name(header["kid"], place["table"]) is None:
        raise Refused("belongs to something else: `kid` of its header differs")
    key = key_of(header["kid"])
    try:
        return jwe.decrypt_compact(sealed, key, registry=REGISTRY).plaintext.decode()
    except (JoseError, ValueError) as error:
        raise Refused(f"does not open: {type(error).__name__}") from None


def _header(text):
    parts = text.split(".")
    if len(parts) != 5 or not text.startswith("eyJ"):
        return None
    try:
        header = json.loads(base64.urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4)))
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _key_name(kid, table):
    """`<table>/at/s<shard>/v<version>`, in its one spelling: its series and its version."""
    number = "(?:0|[1-9][0-9]*)"
    found = re.fullmatch(f"({re.escape(table)}/{FAMILY}/s{number})/(v{number})", kid)
    return found and found.groups()


class KmsKeys:
    """Keys that KMS wraps: asked for once, and kept for a while. Many that miss the same one ask once."""

    def __init__(self, dynamodb, kms, table, key_table):
        self._dynamodb, self._kms, self._table, self._key_table = dynamodb, kms, table, key_table
        self._held, self._asking = {}, threading.Lock()

    def __call__(self, kid):
        with self._asking:
            key, since = self._held.get(kid, (None, 0.0))
            if key is None or time.monotonic() - since >= KEY_LIFETIME:
                self._held.pop(kid, None)
                key = self._unwrap(kid)
                self._held[kid] = (key, time.monotonic())
            return key

    def _unwrap(self, kid):
        series, version = _key_name(kid, self._table)
        key = {"PK": {"S": series}, "SK": {"S": version}}
        item = self._dynamodb.get_item(TableName=self._key_table, Key=key).get("Item")
        if item is None:
            raise Refused(f"there is no key {kid} in {self._key_table}")
        context = {"purpose": "perennial", "table": self._table, "family": FAMILY, "kid": kid}
        answer = self._kms.decrypt(
            CiphertextBlob=item["wrapped"]["B"], KeyId=item["cmk"]["S"], EncryptionContext=context
        )
        return imported(answer["Plaintext"])


def imported(raw):
    """A key of 32 bytes, as joserfc takes it."""
    if len(raw) != 32:
        raise Refused("not a key of 32 bytes")
    return OctKey.import_key(raw)


def local_keys(text):
    """Keys of a file: 32 bytes each, in hexadecimal or base64, one a line. For development."""
    keys = {}
    for word in re.split(r"[,\s]+", text.strip()):
        try:
            padded = word.replace("-", "+").replace("_", "/") + "=" * (-len(word) % 4)
            raw = bytes.fromhex(word) if len(word) == 64 else base64.b64decode(padded, validate=True)
        except (ValueError, binascii.Error):
            raise Refused("a key is 32 bytes in hexadecimal or base64") from None
        keys["local/" + hashlib.sha256(raw).hexdigest()[:16]] = imported(raw)
    return keys


class Known:
    """What is known of a client."""

    def __init__(self):
        self.asking = threading.Lock()
        self.token, self.error, self.ask_again = None, None, 0.0

    def good(self):
        token = self.token
        return token if token is not None and token["expires_at"] > time.time() else None


class Reader:
    """Reads clients' tokens. Make it once and keep it: it holds connections, keys and tokens. Threads may share it.

    `read` gives a token that is good, from memory where it can; ask it before each request of yours. At most one question about a
    client is under way, whoever wants its answer. While the table gives none, a good token goes on being given; an expired one
    never is. `forget` is for a 401 of a provider's: some end the old access token when they issue a new one, and the next `read`
    asks the table.
    """

    def __init__(self, table, key_table=None, key_file=None, require_sealed=False):
        self._table, self._require_sealed = table, require_sealed
        self._dynamodb = boto3.client("dynamodb", config=DYNAMODB)
        self._kms_keys = KmsKeys(self._dynamodb, boto3.client("kms"), table, key_table or f"{table}-keys")
        self._known, self._naming = {}, threading.Lock()
        self._local = {}
        if key_file is not None:
            with open(key_file, encoding="ascii") as file:
                self._local = local_keys(file.read())

    def read(self, client):
        with self._naming:
            known = self._known.setdefault(client, Known())
        if time.time() >= known.ask_again or known.good() is None:
            # Nobody waits for a question while there is a good token.
            if known.asking.acquire(blocking=known.good() is None):
                try:
                    # Whoever has waited may find it answered.
                    if time.time() >= known.ask_again:
                        self._learn(client, known)
                finally:
                    known.asking.release()
        token, error = known.good(), known.error
        if token is None:
            raise error or NoToken(f"no valid token for {client}")
        return token

    def forget(self, client):
        with self._naming:
            self._known.pop(client, None)

    def _learn(self, client, known):
        try:
            token, refresh_at = self._ask(client)
            due = refresh_at + REFRESH_TAKES - time.time()
            known.token, known.error = token, None
            known.ask_again = time.time() + max(PACE, min(due, CONFIRM))
        except (Refused, BotoCoreError, ClientError) as error:
            if isinstance(error, NoToken):
                known.token = None
            known.error, known.ask_again = error, time.time() + PACE

    def _ask(self, client):
        answer = self._dynamodb.get_item(
            TableName=self._table,
            Key={"PK": {"S": f"CLIENT#{client}"}, "SK": {"S": "TOKEN#ACCESS"}},
            # Nothing else of the item is a reader's business.
            ProjectionExpression="access_token, expires_at, refresh_at, tok_gen",
        )
        item = answer.get("Item", {})
        text = item.get("access_token", {}).get("S")
        expires_at = int(item.get("expires_at", {}).get("N", 0))
        if not text or expires_at <= time.time():
            raise NoToken(f"no valid token for {client}")
        sealed = is_sealed(text)
        if sealed:
            version = int(item.get("tok_gen", {}).get("N", -1))
            text = open_sealed(text, {"table": self._table, "client": client, "version": version}, self._key)
        elif self._require_sealed:
            raise NoToken(f"the token of {client} is not sealed")
        refresh_at = int(item["refresh_at"]["N"]) / 1000 if "refresh_at" in item else expires_at - CONFIRM
        return {"access_token": text, "expires_at": expires_at, "sealed": sealed}, refresh_at

    def _key(self, kid):
        if not kid.startswith("local/"):
            return self._kms_keys(kid)
        if kid not in self._local:
            raise Refused(f"sealed with the key {kid}: name its file")
        return self._local[kid]


def answer(reader, client):
    try:
        found = reader.read(client)
    except (Refused, BotoCoreError, ClientError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    # One write a line: other threads print as well.
    sys.stdout.write(json.dumps({"client": client, **found}) + "\n")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description="Reads clients' access tokens, sealed or plain.")
    parser.add_argument("client", nargs="?", help="the client's id; without, ids are read from standard input")
    parser.add_argument("--table", default="client-credentials")
    parser.add_argument("--key-table", help="the table of wrapped keys; the table's name and -keys without")
    parser.add_argument("--key-file", help='for tokens that were sealed with sealing.mode = "local"')
    parser.add_argument("--require-sealed", action="store_true", help="refuse a token that stands there as it is")
    options = parser.parse_args()
    # Where AWS_REGION is set, boto3 looks for AWS_DEFAULT_REGION.
    if "AWS_REGION" in os.environ:
        os.environ.setdefault("AWS_DEFAULT_REGION", os.environ["AWS_REGION"])
    try:
        reader = Reader(options.table, options.key_table, options.key_file, options.require_sealed)
        if options.client is not None:
            print(json.dumps(reader.read(options.client)))
            return
        with ThreadPoolExecutor(max_workers=32) as threads:
            for client in sys.stdin:
                threads.submit(answer, reader, client.strip())
    except (Refused, BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"read-sealed-token: {error}")


if __name__ == "__main__":
    main()
