// Aedes on a free port of this host, which it prints: node aedes.mjs AEDES_FOLDER
import { createServer } from "net";
import { pathToFileURL } from "url";

const { Aedes } = await import(pathToFileURL(`${process.argv[2]}/aedes.js`));
const broker = await Aedes.createBroker();
const server = createServer((socket) => { socket.setNoDelay(true); broker.handle(socket); });
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
