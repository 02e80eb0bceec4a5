// A certified OAuth2 provider for tests: panva's oidc-provider, in memory, strict about rotation.
//
// Our own strict provider shares its author with the daemon, and so perhaps its misreadings of the RFCs. This one
// does not. A refresh token is redeemable once; using it again revokes the grant with all its tokens. Of several
// concurrent redemptions one may be answered with tokens, and they are dead as well.
//
// usage: node oidc-server.mjs      prints `READY http://127.0.0.1:PORT` when it listens
// environment: PORT (default: a free one), ACCESS_TOKEN_SECONDS (30), REFRESH_TOKEN_SECONDS (3600)
//
// Token endpoint: /token. Everything under /control/ belongs to this script and not to oidc-provider:
//   POST /control/grants?client_id=basic[&account=a][&scope=s]  a first refresh token, without a browser
//   GET  /control/stats                                         counts: granted, refused, reuses, grants_revoked
//   GET  /control/events                                        what oidc-provider said, oldest first; no tokens
//   POST /control/live         refresh_token=...                whether it can still be redeemed
//   POST /control/introspect   token=...                        whether an access token is active
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import { Provider } from 'oidc-provider';

const ACCESS_TOKEN_SECONDS = Number(process.env.ACCESS_TOKEN_SECONDS ?? 30);
const REFRESH_TOKEN_SECONDS = Number(process.env.REFRESH_TOKEN_SECONDS ?? 3600);
const SCOPES = ['openid', 'offline_access', 'api:read', 'api:write'];

const common = {
  grant_types: ['authorization_code', 'refresh_token', 'client_credentials'],
  response_types: ['code'],
  redirect_uris: ['http://127.0.0.1/callback'],
  application_type: 'native',
  scope: SCOPES.join(' '),
};
// The basic secret holds every character that a client gets wrong which forgets the form encoding before Basic.
const clients = [
  { ...common, client_id: 'basic', client_secret: 'basic-s3cr3t+/=&:%', token_endpoint_auth_method: 'client_secret_basic' },
  { ...common, client_id: 'post', client_secret: 'post-s3cr3t', token_endpoint_auth_method: 'client_secret_post' },
  { ...common, client_id: 'public', grant_types: ['authorization_code', 'refresh_token'], token_endpoint_auth_method: 'none' },
];

function configuration() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return {
    clients,
    scopes: SCOPES,
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), kid: 'test', use: 'sig', alg: 'RS256' }] },
    clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'none'],
    features: {
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      revocation: { enabled: true },
      devInteractions: { enabled: false },
      rpInitiatedLogout: { enabled: false },
    },
    interactions: { url: () => '/no-browser-here' },
    rotateRefreshToken: true,
    issueRefreshToken: async (ctx, client) => client.grantTypeAllowed('refresh_token'),
    ttl: {
      AccessToken: ACCESS_TOKEN_SECONDS,
      ClientCredentials: ACCESS_TOKEN_SECONDS,
      RefreshToken: REFRESH_TOKEN_SECONDS,
      Grant: REFRESH_TOKEN_SECONDS,
      Session: REFRESH_TOKEN_SECONDS,
      Interaction: 600,
      AuthorizationCode: 60,
      IdToken: 300,
    },
    cookies: { keys: ['only-for-tests'] },
    pkce: { required: () => false },
    findAccount: async (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  };
}

const REUSE = 'refresh token already used';
const events = [];
const stats = { granted: 0, refused: 0, reuses: 0, grants_revoked: 0, by_client: {} };

function clientCounts(id) {
  stats.by_client[id] ??= { granted: 0, refused: 0, reuses: 0 };
  return stats.by_client[id];
}

function note(event, ctx, more = {}) {
  const { params, client } = ctx?.oidc ?? {};
  const request_id = ctx?.get('x-request-id');
  events.push({ at_ms: Date.now(), event, request_id, grant_type: params?.grant_type, client_id: client?.clientId, ...more });
}

function observe(provider) {
  provider.on('grant.success', (ctx) => {
    stats.granted += 1;
    clientCounts(ctx.oidc.client.clientId).granted += 1;
    note('granted', ctx);
  });
  provider.on('grant.error', (ctx, error) => {
    const reuse = error.error_detail === REUSE;
    for (const counts of [stats, clientCounts(ctx.oidc?.client?.clientId ?? 'unknown')]) {
      counts.refused += 1;
      counts.reuses += reuse ? 1 : 0;
    }
    note('refused', ctx, { error: error.error, detail: error.error_detail, reuse });
  });
  provider.on('grant.revoked', (ctx, grantId) => {
    stats.grants_revoked += 1;
    note('grant_revoked', ctx, { grant_id: grantId });
  });
  provider.on('server_error', (ctx, error) => {
    note('server_error', ctx, { error: String(error) });
    console.error(error);
  });
}

// Makes what the authorization code flow would have made.
async function grant(provider, { client_id: clientId, account = 'account-1', scope = 'openid offline_access api:read' }) {
  const client = await provider.Client.find(clientId);
  if (!client) throw new Error('no such client');
  const consent = new provider.Grant({ accountId: account, clientId });
  consent.addOIDCScope(scope);
  const grantId = await consent.save();
  const refreshToken = new provider.RefreshToken({
    client,
    accountId: account,
    grantId,
    scope,
    gty: 'authorization_code',
    authTime: Math.floor(Date.now() / 1000),
    claims: {},
    expiresWithSession: false,
    rotations: 0,
  });
  return { refresh_token: await refreshToken.save(), grant_id: grantId, client_id: clientId, scope };
}

async function live(provider, { refresh_token: value }) {
  const token = value && (await provider.RefreshToken.find(value));
  // A revocation that races a rotation leaves the new token behind: it is dead because its grant is gone.
  const granted = token && (await provider.Grant.find(token.grantId));
  return { live: Boolean(granted && !token.consumed) };
}

async function introspect(provider, { token: value }) {
  const find = async (model) => (value ? model.find(value) : undefined);
  const own = await find(provider.ClientCredentials);
  const token = own ?? (await find(provider.AccessToken));
  const granted = own ?? (token && (await provider.Grant.find(token.grantId)));
  if (!granted) return { active: false };
  return { active: true, client_id: token.clientId, scope: token.scope, exp: token.exp };
}

async function control(provider, request, url) {
  let body = '';
  for await (const chunk of request) body += chunk;
  const params = { ...Object.fromEntries(url.searchParams), ...Object.fromEntries(new URLSearchParams(body)) };
  switch (`${request.method} ${url.pathname}`) {
    case 'POST /control/grants': return grant(provider, params);
    case 'GET /control/stats': return stats;
    case 'GET /control/events': return events;
    case 'POST /control/live': return live(provider, params);
    case 'POST /control/introspect': return introspect(provider, params);
    default: throw new Error('no such endpoint');
  }
}

function reply(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}

// The issuer names the port, so the socket comes first and the provider second.
const server = createServer();
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1');
await once(server, 'listening');
const issuer = `http://127.0.0.1:${server.address().port}`;
const provider = new Provider(issuer, configuration());
observe(provider);
const answer = provider.callback();
server.on('request', (request, response) => {
  const url = new URL(request.url, issuer);
  if (!url.pathname.startsWith('/control/')) return answer(request, response);
  return control(provider, request, url).then(
    (body) => reply(response, 200, body),
    (error) => reply(response, 400, { error: String(error) }),
  );
});
for (const name of ['SIGTERM', 'SIGINT']) {
  process.on(name, () => {
    server.close(() => process.exit(0));
    server.closeAllConnections();
  });
}
console.log(`READY ${issuer}`);
