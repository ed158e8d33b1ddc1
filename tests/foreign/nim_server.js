// Nim behind the environment protocol, in JavaScript: node nim_server.js PROTOS_FOLDER
// A heap has 5 to 20 stones; action a takes a + 1 of them; who takes the last one wins.
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const SIZE = 21, ACTIONS = 3;
const contract = {
  'game.observation_shape': '[21]', 'game.observation_dtype': 'float32',
  'game.num_actions': '3', 'game.num_players': '2',
};

const begin = (seed) => ({ left: 5 + Number(BigInt(seed) % 16n), player: 0, reward: 0 });

const move = ({ left, player }, action) =>
  ({ left: left - action - 1, player: 1 - player, reward: left === action + 1 ? 1 : 0 });

const tensor = (dtype, shape, values) => ({ dtype, shape, data: Buffer.from(values.buffer) });

function timeStep({ left, player, reward }) {
  const observation = Float32Array.from({ length: SIZE }, (_, i) => i === left ? 1 : 0);
  const legalActions = Uint8Array.from({ length: ACTIONS }, (_, action) => action < left ? 1 : 0);
  return {
    observation: tensor('FLOAT32', [1, SIZE], observation),
    reward: tensor('FLOAT32', [1], Float32Array.of(reward)),
    toPlay: tensor('INT32', [1], Int32Array.of(player)),
    legalActions: tensor('BOOL', [1, ACTIONS], legalActions),
    terminated: tensor('BOOL', [1], Uint8Array.of(left === 0 ? 1 : 0)),
    truncated: tensor('BOOL', [1], Uint8Array.of(0)),
  };
}

// The game after a request; this server holds one game a stream, in row 0.
function next(game, { rows, what, resets, moves }) {
  const numbers = what === 'resets' ? resets.seeds : what === 'moves' ? moves.actions : [];
  if (rows.length !== 1 || rows[0] !== 0 || numbers.length !== 1) {
    throw new Error(`one number for row 0, the only one, is allowed; given rows ${rows}`);
  }
  if (what === 'resets') return begin(numbers[0]);
  const [action] = numbers;
  if (!game || action < 0 || action >= Math.min(ACTIONS, game.left)) {
    throw new Error(`action ${action} is not allowed now`);
  }
  return move(game, action);
}

function play(stream) {
  let game = null;
  stream.on('data', (request) => {
    try {
      game = next(game, request);
      stream.write(timeStep(game));
    } catch (error) {
      stream.emit('error', { code: grpc.status.INVALID_ARGUMENT, details: error.message });
    }
  });
  stream.on('end', () => stream.end());
}

const describe = (call, callback) => callback(null, { contract, maxGamesPerStream: 1 });

const definition = protoLoader.loadSync('muprover/v1/environment.proto',
  { includeDirs: [process.argv[2]], oneofs: true, longs: String, arrays: true });
const { EnvironmentService } = grpc.loadPackageDefinition(definition).muprover.v1;
const server = new grpc.Server();
server.addService(EnvironmentService.service, { describe, play });
server.bindAsync('localhost:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(port);
});
