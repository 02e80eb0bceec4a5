"""Seals with `joserfc`, and opens with the reader of examples/readers/python, what tests/interop.rs orders on standard input.

Takes {"keys": {KID: HEX}, "seal": [{"header", "plaintext", "key": HEX}], "open": [{"place", "sealed"}]} and answers
{"sealed": [...], "opened": [{"plaintext"} or {"refused"}], "ours": [true or false]} on standard output.
"""

import json
import pathlib
import sys

from joserfc import jwe
from joserfc.jwk import OctKey
from joserfc.registry import HeaderParameter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples/readers/python"))
sys.dont_write_bytecode = True

from read_sealed_token import Refused, Registry, imported, is_sealed, open_sealed  # noqa: E402

# What a sealer who means harm would use as well.
ANYTHING = Registry(
    algorithms=["A256KW", "A256GCM", "dir", "A128KW", "A256GCMKW", "A128GCM", "A256CBC-HS512", "DEF"],
    strict_check_header=False,
    header_registry={"tbl": HeaderParameter("Table", "str")},
)


def main():
    order = json.load(sys.stdin)

    def key_of(kid):
        if kid not in order["keys"]:
            raise Refused(f"there is no key {kid}")
        return imported(bytes.fromhex(order["keys"][kid]))

    def opened(place, sealed):
        # Anything else than a refusal is a mistake of the reader's, and ends this program.
        try:
            return {"plaintext": open_sealed(sealed, place, key_of)}
        except Refused as error:
            return {"refused": str(error)}

    sealed = [
        jwe.encrypt_compact(
            case["header"],
            case["plaintext"].encode(),
            OctKey.import_key(bytes.fromhex(case["key"])),
            registry=ANYTHING,
        )
        for case in order["seal"]
    ]
    cases = order["open"]
    answer = {
        "sealed": sealed,
        "opened": [opened(case["place"], case["sealed"]) for case in cases],
        "ours": [is_sealed(case["sealed"]) for case in cases],
    }
    print(json.dumps(answer))


main()
