// BullMQ on Node.js. The same workloads as in common.py, as no Python can run this queue's worker.
//
// `node peers/bullmq_node.mjs drain --url=redis://127.0.0.1:6379/0 --queue=q1 --tasks=1000` runs one workload and prints
// one line of JSON. The packages are those of the folder in RACE_MODULES.

import { spawn, spawnSync } from "node:child_process";
import fs from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const FOLDER = path.resolve(process.env.RACE_MODULES ?? ".");
const require = createRequire(path.join(FOLDER, "race.js"));

const ATTEMPTS = 3;
const LONG = 2; // seconds that a task of `kill` takes
const FORBEARANCE = 90;
const IDLE = 3;

const ABOUT = {
  settings:
    "`concurrency: 100`, and `addBulk` by the thousand; all else as it comes. Its workloads are a translation of those " +
    "for Python. (BullMQ's documentation, “Workers: Concurrency” and “Queues: Adding jobs in bulk”)",
  notes: {
    kill: "Its `lockDuration` and its `stalledInterval` are 30 s by default.",
    crowd: "100 promises; ioredis sends the calls of one turn of the event loop together.",
    startup: "`require` of the package in Node.js, less the start of Node.js itself.",
  },
  unable: {},
  ahead: {
    latency: "Its worker waits on the server in a `BZPOPMIN` of a marker, as ours does, and it is Node.js.",
  },
};

function versions() {
  const names = { bullmq: "bullmq", ioredis: "ioredis" };
  for (const name of Object.keys(names)) {
    names[name] = JSON.parse(fs.readFileSync(path.join(FOLDER, "node_modules", name, "package.json"))).version;
  }
  return { ...names, "Node.js": process.versions.node };
}

const args = Object.fromEntries(process.argv.slice(3).map((word) => word.replace(/^--/, "").split(/=(.*)/s)));
const workload = process.argv[2];
const url = new URL(args.url ?? "redis://127.0.0.1:6379/0");
const name = args.queue ?? "race";
const fails = workload === "retry" ? ATTEMPTS - 1 : 0;
const seconds = workload === "kill" ? LONG : Number(args.seconds ?? 0);

function connection(more = {}) {
  const { Redis } = require("ioredis");
  return new Redis(url.href, { maxRetriesPerRequest: null, ...more });
}

// The body of the handler, and what it saw.
const calls = [];
const runs = new Map();
const log = args.log ? fs.openSync(args.log, "a") : null;
let begun = 0;

const wall = () => (performance.timeOrigin + performance.now()) / 1000;

function write(event, n) {
  if (log !== null) fs.writeSync(log, `${event} ${n} ${wall()}\n`);
}

async function handle(job) {
  const { n } = job.data;
  write("start", n);
  if (!calls.length) begun = performance.now();
  calls.push(n);
  const ran = (runs.get(n) ?? 0) + 1;
  runs.set(n, ran);
  if (ran <= fails) throw new Error("expected");
  if (seconds) {
    await sleep(seconds * 1000);
    write("end", n);
  }
}

// The queue.
let queue;

function open() {
  const { Queue } = require("bullmq");
  queue = new Queue(name, { connection: connection() });
}

function serve() {
  const { Worker } = require("bullmq");
  const worker = new Worker(name, handle, { connection: connection(), concurrency: 100 });
  worker.on("error", (error) => console.error(String(error)));
}

const options = fails ? { attempts: ATTEMPTS, backoff: { type: "fixed", delay: 100 } } : {};

function create(data, due) {
  const more = due === undefined ? {} : { delay: Math.max(0, Math.round((due - wall()) * 1000)) };
  return queue.add("handle", data, { ...options, ...more });
}

async function createMany(items) {
  for (let start = 0; start < items.length; start += 1000) {
    const chunk = items.slice(start, start + 1000);
    await queue.addBulk(chunk.map((data) => ({ name: "handle", data, opts: options })));
  }
}

const unfinished = async () =>
  Object.values(await queue.getJobCounts("waiting", "active", "delayed")).reduce((a, b) => a + b, 0);

// What the workloads share.
const paramsOf = (n) => ({ n, prompt: "a cat in a hat, drawn with ink" });
const numbers = (tasks) => Array.from({ length: tasks }, (_, n) => n);

async function spread(items, width, call) {
  const rest = items.values();
  const run = async () => {
    for (const item of rest) await call(item);
  };
  await Promise.all(numbers(width).map(run));
}

function info(section) {
  return new Promise((resolve, reject) => {
    let text = "";
    const socket = net.connect(Number(url.port || 6379), url.hostname, () => socket.write(`INFO ${section}\r\nQUIT\r\n`));
    socket.on("data", (data) => (text += data));
    socket.on("error", reject);
    socket.on("close", () =>
      resolve(Object.fromEntries(text.split("\r\n").filter((line) => line.includes(":")).map((line) => line.split(/:(.*)/s)))),
    );
  });
}

async function serverCpu() {
  const cpu = await info("cpu");
  return Number(cpu.used_cpu_user) + Number(cpu.used_cpu_sys);
}

function miscounted(seen, tasks, times) {
  const counts = new Map();
  for (const n of seen) counts.set(n, (counts.get(n) ?? 0) + 1);
  const wrong = new Map();
  for (const n of numbers(tasks)) {
    const ran = counts.get(n) ?? 0;
    if (ran !== times) wrong.set(ran, (wrong.get(ran) ?? 0) + 1);
  }
  if (!wrong.size) return null;
  return `each of ${tasks} must run ${times}x, but ` + [...wrong].map(([ran, many]) => `${many} ran ${ran}x`).join(", ");
}

function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * q;
  const low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}

class Child {
  constructor(file) {
    this.file = file;
    const words = [`--url=${url.href}`, `--queue=${name}`, `--log=${file}`, `--seconds=${seconds}`];
    this.process = spawn(process.execPath, [fileURLToPath(import.meta.url), "work", ...words], { stdio: "inherit" });
  }

  seen(event) {
    if (!fs.existsSync(this.file)) return [];
    const lines = fs.readFileSync(this.file, "utf8").split("\n").filter(Boolean).map((line) => line.split(" "));
    return lines.filter(([kind]) => kind === event).map(([, n, at]) => [Number(n), Number(at)]);
  }

  async wait(event, tasks, limit) {
    const deadline = performance.now() + limit * 1000;
    while (new Set(this.seen(event).map(([n]) => n).filter((n) => n >= 0)).size < tasks) {
      if (performance.now() > deadline) return false;
      if (this.process.exitCode !== null) throw new Error(`the worker ended with ${this.process.exitCode}`);
      await sleep(20);
    }
    return true;
  }

  async warmUp() {
    await create(paramsOf(-1));
    const deadline = performance.now() + 30_000;
    while (!this.seen("start").length) {
      if (performance.now() > deadline) throw new Error("the worker ran nothing within 30 s");
      await sleep(20);
    }
    await sleep(1000);
  }

  async kill() {
    const ended = new Promise((resolve) => this.process.once("exit", resolve));
    this.process.kill("SIGKILL");
    await ended;
  }
}

async function inChild(work) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), "race-"));
  const children = [];
  try {
    return await work(() => {
      children.push(new Child(path.join(folder, "log")));
      return children.at(-1);
    });
  } finally {
    for (const child of children) child.process.kill("SIGKILL");
    fs.rmSync(folder, { recursive: true });
  }
}

async function settle(count) {
  serve();
  const deadline = performance.now() + 600_000;
  while (calls.length < count || (await unfinished())) {
    if (performance.now() > deadline) throw new Error(`${calls.length} of ${count} calls within 600 s`);
    await sleep(2);
  }
  const took = (performance.now() - begun) / 1000;
  await sleep(300);
  return took;
}

async function lateness(child, due, limit) {
  if (!(await child.wait("start", due.length, limit))) return [{}, `not all of ${due.length} started within ${limit} s`];
  await sleep(300);
  const starts = child.seen("start").filter(([n]) => n >= 0);
  const late = starts.map(([n, at]) => (at - due[n]) * 1000);
  const found = { p50: quantile(late, 0.5), p99: quantile(late, 0.99), first: Math.min(...late) };
  return [found, miscounted(starts.map(([n]) => n), due.length, 1)];
}

async function inTurn(tasks, pause, call) {
  const start = performance.now();
  for (const n of numbers(tasks)) {
    await sleep(Math.max(0, start + n * pause - performance.now()));
    await call(n);
  }
}

const cpuOf = (statement) => {
  // Node.js tells no child's CPU time, so the child tells its own, up to here.
  const script = `${statement}; const u = process.cpuUsage(); console.log((u.user + u.system) / 1000)`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ["-e", script], { cwd: FOLDER, encoding: "utf8" });
  if (status) throw new Error(stderr);
  return Number(stdout);
};

const WORKLOADS = {
  async drain(tasks) {
    const start = performance.now();
    await createMany(numbers(tasks).map(paramsOf));
    const created = (performance.now() - start) / 1000;
    const took = await settle(tasks);
    return [{ rate: tasks / took, created: tasks / created }, miscounted(calls, tasks, 1)];
  },

  async create(tasks) {
    await create(paramsOf(-1));
    const start = performance.now();
    for (const n of numbers(tasks)) await create(paramsOf(n));
    return [{ rate: (tasks / (performance.now() - start)) * 1000 }, null];
  },

  async crowd(tasks) {
    await create(paramsOf(-1));
    const start = performance.now();
    await spread(numbers(tasks), 100, (n) => create(paramsOf(n)));
    return [{ rate: (tasks / (performance.now() - start)) * 1000 }, null];
  },

  latency: (tasks) =>
    inChild(async (start) => {
      const child = start();
      await child.warmUp();
      const sent = [];
      await inTurn(tasks, 20, (n) => {
        sent[n] = wall();
        return create(paramsOf(n));
      });
      return lateness(child, sent, 30);
    }),

  lone: (tasks) =>
    inChild(async (start) => {
      const child = start();
      await child.warmUp();
      let [since, before] = [performance.now(), await serverCpu()];
      await sleep(IDLE * 1000);
      const idle = ((await serverCpu()) - before) / ((performance.now() - since) / 1000);
      [since, before] = [performance.now(), await serverCpu()];
      await inTurn(tasks, 5, (n) => create(paramsOf(n)));
      if (!(await child.wait("start", tasks, 30))) return [{}, `not all of ${tasks} tasks started within 30 s`];
      const used = (await serverCpu()) - before - (idle * (performance.now() - since)) / 1000;
      const seen = child.seen("start").map(([n]) => n).filter((n) => n >= 0);
      return [{ server: (used / tasks) * 1e6, idle: idle * 1e6 }, miscounted(seen, tasks, 1)];
    }),

  delayed: (tasks) =>
    inChild(async (start) => {
      const child = start();
      await child.warmUp();
      const now = wall();
      const due = numbers(tasks).map((n) => now + 1 + (5 * n) / tasks);
      await spread(numbers(tasks), 32, (n) => create(paramsOf(n), due[n]));
      return lateness(child, due, 60);
    }),

  async retry(tasks) {
    await createMany(numbers(tasks).map(paramsOf));
    const took = await settle(tasks * ATTEMPTS);
    return [{ seconds: took }, miscounted(calls, tasks, ATTEMPTS)];
  },

  async memory(tasks) {
    const before = Number((await info("memory")).used_memory);
    await createMany(numbers(tasks).map((n) => ({ n, prompt: String(n).padStart(8, "0").padEnd(80, "-") })));
    await queue.close();
    await sleep(500);
    return [{ bytes: (Number((await info("memory")).used_memory) - before) / tasks }, null];
  },

  async startup(tasks) {
    const more = numbers(tasks).map(() => cpuOf('require("bullmq")') - cpuOf("0"));
    return [{ cpu: quantile(more, 0.5) }, null];
  },

  kill: (tasks) =>
    inChild(async (start) => {
      const first = start();
      for (const n of numbers(tasks)) await create(paramsOf(n));
      if (!(await first.wait("start", tasks, 30))) return [{}, "the first worker did not start all"];
      await first.kill();
      const killed = wall();
      if (first.seen("end").length) return [{}, "a task ended before the kill"];
      const second = start();
      const rescued = await second.wait("end", tasks, FORBEARANCE);
      const ends = second.seen("end").map(([, at]) => at - killed);
      return [{ seconds: rescued ? Math.max(...ends) : null, first: ends.length ? Math.min(...ends) : null }, null];
    }),
};

if (workload === "work") {
  serve();
} else if (workload === "describe") {
  console.log(JSON.stringify({ ...ABOUT, versions: versions() }));
} else {
  open();
  const [metrics, error] = await WORKLOADS[workload](Number(args.tasks));
  fs.writeSync(1, JSON.stringify({ metrics, error }) + "\n");
  process.exit(0);
}
