// Makes and reads golden bytes with avsc: `make|read NAME=FILE...`; see ../README.md.
const avro = require('avsc');
const fs = require('fs');

const TASK = {
  scene: 'pay',
  id: 'order-7',
  payload: Buffer.from('{"amount":5}'),
  contentType: 'application/json',
  headers: [{ name: 'trace', value: Buffer.from('t-1') }, { name: 'empty', value: null }],
  key: Buffer.from('k-7'),
  dueAt: 1795836382000,
  delayMs: null,
  deadlineAt: 1795839982000,
  version: 2,
  trace: { hops: [1.5, 2.5], tags: { a: 'b' } },
  note: 'grown',
};

const task = (name) => {
  if (name === 'text') {
    return { ...TASK, payload: '{"amount":5}', key: 'k-7', headers: { trace: 't-1', empty: null } };
  }
  if (name === 'micros') {
    return { ...TASK, dueAt: TASK.dueAt * 1000, deadlineAt: TASK.deadlineAt * 1000 };
  }
  return TASK;
};

const plain = (value) => {
  if (Buffer.isBuffer(value)) return value.toString('base64');
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([name, field]) => [name, plain(field)]));
};

const [command, ...files] = process.argv.slice(2);
const schemas = files.map((file) => {
  const [name, path] = file.split('=');
  const type = avro.Type.forSchema(JSON.parse(fs.readFileSync(path, 'utf8')), { wrapUnions: false });
  return [name, type];
});
if (command === 'make') {
  schemas.forEach(([name, type], index) => {
    const id = 101 + index;
    const frame = Buffer.alloc(5);
    frame.writeUInt32BE(id, 1);
    const value = Buffer.concat([frame, type.toBuffer(task(name))]).toString('hex');
    console.log(JSON.stringify({ library: 'avsc', schema: name, frame: 'confluent', id, value }));
  });
} else {
  for (const line of fs.readFileSync(0, 'utf8').trim().split('\n')) {
    const given = JSON.parse(line);
    const type = schemas.find(([name]) => name === given.schema)[1];
    const start = given.frame === 'single-object' ? 10 : 5;
    const value = Buffer.from(given.value, 'hex').subarray(start);
    console.log(JSON.stringify(plain(type.fromBuffer(value))));
  }
}
