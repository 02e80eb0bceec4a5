// Reads clients' access tokens from Perennial's table, sealed or plain, with `jose` and AWS's own SDK, and keeps them in memory
// for as long as they are good. Copy it: it is meant to become a part of your program.
//
// usage: node read-sealed-token.mjs [CLIENT_ID] [--table NAME] [--key-table NAME] [--key-file FILE] [--require-sealed]
//
// Prints {"access_token":...,"expires_at":...,"sealed":...}, or says on standard error why not and ends with 1. Without a client's
// id it reads ids from standard input and answers each with a line, as a service would use it: {"client":...,"access_token":...}
// or {"client":...,"error":...}.
// Region, credentials and endpoints are found as the SDK finds them: AWS_REGION, AWS_ENDPOINT_URL_DYNAMODB,
// AWS_ENDPOINT_URL_KMS. --key-file is for tokens that were sealed with sealing.mode = "local".
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { DynamoDBClient, GetItemCommand } from '@aws-sdk/client-dynamodb';
import { DecryptCommand, KMSClient } from '@aws-sdk/client-kms';
import { compactDecrypt } from 'jose';

// The one thing that a reader may open, and the family of keys that opens it.
const ATTRIBUTE = 'access_token';
const FAMILY = 'at';
const HEADER = {
  alg: 'string', enc: 'string', kid: 'string', tbl: 'string', cid: 'string', att: 'string', ver: 'number', iat: 'number',
};
// How long an unwrapped key is used before KMS is asked again: what revoking a right takes.
const KEY_LIFETIME_MS = 10 * 60_000;
// A token in memory is asked for again soon after its refresh was due, and after a minute in any case ...
const CONFIRM_MS = 60_000;
const REFRESH_TAKES_MS = 1_500;
// ... and what is overdue, or has failed, no more often than this.
const PACE_MS = 1_000;
// A table that does not answer is given up on while the token in memory is good.
const DYNAMODB = { maxAttempts: 2, requestHandler: { connectionTimeout: 2_000, requestTimeout: 2_000 } };

/** Whether Perennial sealed this text. A provider's own tokens may be JWE, too: their headers lack our members. */
export function isSealed(text) {
  const header = headerOf(text);
  return header !== null && ['tbl', 'cid', 'att'].every((name) => Object.hasOwn(header, name));
}

/**
 * Opens a sealed access token.
 *
 * What is sealed is opened where it belongs and nowhere else: table, client, attribute and generation of its header are
 * compared with the item that it was read from. Without that, whoever may write to the table could give you the token of another.
 *
 * @param {string} sealed what stands in the item
 * @param {{table: string, client: string, version: number}} place the item: version is its `tok_gen`
 * @param {(kid: string) => Promise<CryptoKey | Uint8Array>} keyOf the key of this name
 */
export async function open(sealed, place, keyOf) {
  const header = headerOf(sealed);
  if (header === null) throw new Error('not a sealed value');
  const names = Object.keys(header);
  const ours = names.length === Object.keys(HEADER).length && names.every((name) => typeof header[name] === HEADER[name]);
  if (!ours || !Number.isSafeInteger(header.ver)) throw new Error('not a sealed value of ours: its header differs');
  if (header.alg !== 'A256KW' || header.enc !== 'A256GCM') throw new Error('its algorithms are not ours');
  const expected = { tbl: place.table, cid: place.client, att: ATTRIBUTE, ver: place.version };
  for (const [name, value] of Object.entries(expected)) {
    if (header[name] !== value) throw new Error(`belongs to something else: \`${name}\` of its header differs`);
  }
  if (!header.kid.startsWith('local/') && keyName(header.kid, place.table) === null) {
    throw new Error('belongs to something else: `kid` of its header differs');
  }
  const { plaintext } = await compactDecrypt(sealed, await keyOf(header.kid), {
    keyManagementAlgorithms: ['A256KW'],
    contentEncryptionAlgorithms: ['A256GCM'],
  });
  return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(plaintext);
}

function headerOf(text) {
  const parts = text.split('.');
  if (parts.length !== 5 || !text.startsWith('eyJ')) return null;
  try {
    const header = JSON.parse(Buffer.from(parts[0], 'base64url').toString('utf8'));
    return header !== null && typeof header === 'object' && !Array.isArray(header) ? header : null;
  } catch {
    return null;
  }
}

// `<table>/at/s<shard>/v<version>`, in its one spelling.
function keyName(kid, table) {
  const series = `${table}/${FAMILY}/s`;
  const rest = kid.startsWith(series) ? /^(0|[1-9]\d*)\/(v(?:0|[1-9]\d*))$/.exec(kid.slice(series.length)) : null;
  return rest && { series: series + rest[1], version: rest[2] };
}

/** Keys that KMS wraps: asked for once, and kept for a while. Many that miss the same one ask once. */
export function kmsKeys(dynamodb, kms, table, keyTable) {
  const held = new Map();
  return (kid) => {
    const known = held.get(kid);
    if (known && Date.now() - known.since < KEY_LIFETIME_MS) return known.key;
    const key = unwrap(dynamodb, kms, table, keyTable, kid);
    held.set(kid, { key, since: Date.now() });
    key.catch(() => held.delete(kid));
    return key;
  };
}

async function unwrap(dynamodb, kms, table, keyTable, kid) {
  const { series, version } = keyName(kid, table);
  const { Item } = await dynamodb.send(
    new GetItemCommand({ TableName: keyTable, Key: { PK: { S: series }, SK: { S: version } } }),
  );
  if (!Item) throw new Error(`there is no key ${kid} in ${keyTable}`);
  const { Plaintext } = await kms.send(
    new DecryptCommand({
      CiphertextBlob: Item.wrapped.B,
      KeyId: Item.cmk.S,
      EncryptionContext: { purpose: 'perennial', table, family: FAMILY, kid },
    }),
  );
  return imported(Plaintext);
}

/** Keys of a file: 32 bytes each, in hexadecimal or base64, one a line. For development. */
export function localKeys(text) {
  const keys = new Map();
  for (const word of text.split(/[,\s]+/).filter(Boolean)) {
    const bytes = Buffer.from(word, /^[0-9a-f]{64}$/i.test(word) ? 'hex' : 'base64');
    if (bytes.length !== 32) throw new Error('a key is 32 bytes in hexadecimal or base64');
    const kid = `local/${createHash('sha256').update(bytes).digest('hex').slice(0, 16)}`;
    keys.set(kid, imported(bytes));
  }
  return keys;
}

// As a key that cannot be read out again; the bytes are wiped.
async function imported(bytes) {
  try {
    if (bytes?.length !== 32) throw new Error('not a key of 32 bytes');
    return await crypto.subtle.importKey('raw', bytes, 'AES-KW', false, ['unwrapKey']);
  } finally {
    bytes?.fill(0);
  }
}

/**
 * Reads clients' tokens. Make it once and keep it: it holds connections, keys and tokens.
 *
 * `read(client)` gives a token that is good, from memory where it can; ask it before each request of yours. `forget(client)` is for
 * a 401 of a provider's: some end the old access token when they issue a new one, and the next `read` asks the table.
 */
export function reader({ table, keyTable = `${table}-keys`, keyFile = null, requireSealed = false }) {
  const dynamodb = new DynamoDBClient(DYNAMODB);
  const fromKms = kmsKeys(dynamodb, new KMSClient({}), table, keyTable);
  const fromFile = keyFile === null ? Promise.resolve(new Map()) : readFile(keyFile, 'utf8').then(localKeys);
  const keyOf = async (kid) => {
    if (!kid.startsWith('local/')) return fromKms(kid);
    const key = (await fromFile).get(kid);
    if (!key) throw new Error(`sealed with the key ${kid}: name its file`);
    return key;
  };
  return cached(async (client) => {
    const { Item } = await dynamodb.send(
      new GetItemCommand({
        TableName: table,
        Key: { PK: { S: `CLIENT#${client}` }, SK: { S: 'TOKEN#ACCESS' } },
        // Nothing else of the item is a reader's business.
        ProjectionExpression: 'access_token, expires_at, refresh_at, tok_gen',
      }),
    );
    const [text, expiresAt] = [Item?.access_token?.S, Number(Item?.expires_at?.N)];
    if (!text || !(expiresAt * 1000 > Date.now())) throw new NoToken(`no valid token for ${client}`);
    const sealed = isSealed(text);
    if (!sealed && requireSealed) throw new NoToken(`the token of ${client} is not sealed`);
    const place = { table, client, version: Number(Item.tok_gen?.N) };
    const token = { access_token: sealed ? await open(text, place, keyOf) : text, expires_at: expiresAt, sealed };
    return { token, refreshAtMs: Number(Item.refresh_at?.N ?? expiresAt * 1000 - CONFIRM_MS) };
  });
}

/** There is no good token: the table says so. */
export class NoToken extends Error {}

/**
 * Tokens in memory, before a function that asks the table: at most one question about a client is under way, whoever wants its
 * answer. While the table gives none, a good token goes on being given; an expired one never is.
 */
export function cached(ask) {
  const known = new Map();
  const isGood = (entry) => entry?.token !== undefined && entry.token.expires_at * 1000 > Date.now();
  const learn = async (client, entry) => {
    // Whoever was forgotten meanwhile, or is asked about anew, does not come back with an older answer.
    const keep = (next) => known.get(client) === entry && known.set(client, next);
    try {
      const { token, refreshAtMs } = await ask(client);
      const due = refreshAtMs + REFRESH_TAKES_MS - Date.now();
      keep({ token, askAgain: Date.now() + Math.max(PACE_MS, Math.min(due, CONFIRM_MS)) });
    } catch (error) {
      const bridged = isGood(entry) && !(error instanceof NoToken);
      keep({ ...(bridged ? { token: entry.token } : { error }), askAgain: Date.now() + PACE_MS });
    }
  };
  const read = async (client) => {
    let entry = known.get(client);
    if (entry?.asking === undefined && !(Date.now() < entry?.askAgain && (entry.error || isGood(entry)))) {
      entry = { ...entry, askAgain: 0 };
      known.set(client, entry);
      entry.asking = learn(client, entry);
    }
    // Nobody waits for a question while there is a good token.
    if (entry.asking !== undefined && !isGood(entry)) {
      await entry.asking;
      entry = known.get(client);
      if (entry === undefined || entry.asking !== undefined) return read(client);
    }
    if (isGood(entry)) return entry.token;
    throw entry?.error ?? new NoToken(`no valid token for ${client}`);
  };
  return { read, forget: (client) => void known.delete(client) };
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      table: { type: 'string', default: 'client-credentials' },
      'key-table': { type: 'string' },
      'key-file': { type: 'string' },
      'require-sealed': { type: 'boolean', default: false },
    },
  });
  if (positionals.length > 1) throw new Error('name one client: node read-sealed-token.mjs CLIENT_ID');
  const tokens = reader({
    table: values.table,
    keyTable: values['key-table'],
    keyFile: values['key-file'],
    requireSealed: values['require-sealed'],
  });
  if (positionals.length === 1) {
    console.log(JSON.stringify(await tokens.read(positionals[0])));
    return;
  }
  for await (const client of createInterface({ input: process.stdin })) {
    // Not awaited: who asks next does not wait for who asked before.
    tokens.read(client).then(
      (token) => console.log(JSON.stringify({ client, ...token })),
      (error) => console.log(JSON.stringify({ client, error: `${error.name}: ${error.message}` })),
    );
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  main().catch((error) => {
    // AWS's errors say by their names what is wrong.
    console.error(`read-sealed-token: ${error.name}: ${error.message}`);
    process.exitCode = 1;
  });
}
