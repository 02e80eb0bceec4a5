// Reads one client's access token exactly as a Node.js reader in production does: with AWS's own SDK and no code
// of ours. What it prints is what such a reader gets.
//
// usage: node read-token.mjs ENDPOINT TABLE CLIENT_ID     prints {"access_token":...,"expires_at":...} or null
// Credentials come from the environment, as the SDK finds them.
import { DynamoDBClient, GetItemCommand } from '@aws-sdk/client-dynamodb';
import { marshall, unmarshall } from '@aws-sdk/util-dynamodb';

const [endpoint, table, id] = process.argv.slice(2);
if (!id) {
  console.error('usage: node read-token.mjs ENDPOINT TABLE CLIENT_ID');
  process.exit(2);
}

const client = new DynamoDBClient({ endpoint, region: 'us-east-1' });
const { Item } = await client.send(
  new GetItemCommand({ TableName: table, Key: marshall({ PK: `CLIENT#${id}`, SK: 'TOKEN#ACCESS' }) }),
);
const { access_token, expires_at } = Item ? unmarshall(Item) : {};
console.log(JSON.stringify(Item ? { access_token, expires_at } : null));
