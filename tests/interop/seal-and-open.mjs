// Seals with `jose`, and opens with the reader of examples/readers/node, what tests/interop.rs orders on standard input:
// {"keys": {KID: HEX}, "seal": [{"header", "plaintext", "key": HEX}], "open": [{"place", "sealed"}]}
// Answers {"sealed": [...], "opened": [{"plaintext"} or {"refused"}], "ours": [true or false]} on standard output.
import { text } from 'node:stream/consumers';
import { CompactEncrypt } from '../../examples/readers/node/node_modules/jose/dist/webapi/index.js';
import { isSealed, open } from '../../examples/readers/node/read-sealed-token.mjs';

const { keys, seal, open: toOpen } = JSON.parse(await text(process.stdin));

const keyOf = async (kid) => {
  if (!Object.hasOwn(keys, kid)) throw new Error(`there is no key ${kid}`);
  return Buffer.from(keys[kid], 'hex');
};

const sealed = [];
for (const { header, plaintext, key } of seal) {
  const message = new CompactEncrypt(new TextEncoder().encode(plaintext)).setProtectedHeader(header);
  sealed.push(await message.encrypt(Buffer.from(key, 'hex'), { crit: { tbl: true } }));
}

const opened = [];
for (const { place, sealed } of toOpen) {
  opened.push(
    await open(sealed, place, keyOf).then(
      (plaintext) => ({ plaintext }),
      (error) => ({ refused: `${error.name}: ${error.message}` }),
    ),
  );
}

console.log(JSON.stringify({ sealed, opened, ours: toOpen.map(({ sealed }) => isSealed(sealed)) }));
