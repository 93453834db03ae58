import wirepost = require('../../dist/index.cjs');

const client = new wirepost.Wirepost({ token: async () => 'wss://ws.example/socket/ticket' });
client.state satisfies string;
