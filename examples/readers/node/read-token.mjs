// Reads one client's access token from Perennial's table as it stands there: where nothing is sealed, AWS's own SDK is all
// that a reader needs. For sealed ones, and for a service that reads often, see read-sealed-token.mjs.
//
// usage: node read-token.mjs CLIENT_ID [TABLE]
//
// Prints {"access_token":...,"expires_at":...}, or says on standard error why not and ends with 1.
// Region, credentials and endpoints are found as the SDK finds them: AWS_REGION, AWS_ENDPOINT_URL_DYNAMODB.
import { DynamoDBClient, GetItemCommand } from '@aws-sdk/client-dynamodb';
import { marshall, unmarshall } from '@aws-sdk/util-dynamodb';

const [id, table = 'client-credentials'] = process.argv.slice(2);
const client = new DynamoDBClient({});
const { Item } = await client.send(
  new GetItemCommand({ TableName: table, Key: marshall({ PK: 'CLIENT#' + id, SK: 'TOKEN#ACCESS' }) }),
);
const token = Item ? unmarshall(Item) : {};
// By its expiry, never by its presence.
if (!token.access_token || token.expires_at * 1000 <= Date.now()) {
  console.error(`read-token: no valid token for ${id}`);
  process.exit(1);
}
console.log(JSON.stringify({ access_token: token.access_token, expires_at: token.expires_at }));
