#include "bus.h"

#include <errno.h>
#include <mosquitto.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define PACKET (127 * 1024)          /* of ours; R2F_PACKET_BYTES less 512 where that is smaller */
#define SMALLEST_CHUNK 256
#define MESSAGE_MAX ((size_t)64 << 20) /* of one message in chunks; four at a time */
#define TRANSFERS 4
#define DEPTH 16

struct transfer {
    bool used;
    unsigned char digest[16];
    char name[80];
    size_t length, chunk, held; /* held: chunks that are here */
    uint8_t *data, *here;
    unsigned age;
};

struct bus {
    const struct service *service;
    struct mosquitto *mosquitto;
    const char *device;
    char root[96], boot[33];
    size_t packet;
    unsigned clock;
    struct transfer transfers[TRANSFERS];
};

static volatile sig_atomic_t stopping;

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- msgpack in ---- */

/* Bytes of one value at `at`, or 0. msgpack-c makes room for as many elements as a header claims, so that a packet of five bytes
   could ask for gigabytes: here no count may exceed the bytes that are left. */
static size_t value_bytes(const uint8_t *at, size_t left, unsigned depth) {
    if (left == 0 || depth > DEPTH) return 0;
    uint8_t tag = at[0];
    size_t head = 1, body = 0, items = 0, wide = 0;
    if (tag <= 0x7f || tag >= 0xe0 || tag == 0xc0 || tag == 0xc2 || tag == 0xc3) return 1;
    if (tag <= 0x8f) items = 2 * (size_t)(tag & 0x0f);
    else if (tag <= 0x9f) items = tag & 0x0f;
    else if (tag <= 0xbf) body = tag & 0x1f;
    else if (tag >= 0xc4 && tag <= 0xc6) wide = (size_t)1 << (tag - 0xc4);
    else if (tag >= 0xd9 && tag <= 0xdb) wide = (size_t)1 << (tag - 0xd9);
    else if (tag >= 0xdc && tag <= 0xdf) wide = (tag & 1) ? 4 : 2;
    else if (tag == 0xca) body = 4;
    else if (tag == 0xcb) body = 8;
    else if (tag >= 0xcc && tag <= 0xcf) body = (size_t)1 << (tag - 0xcc);
    else if (tag >= 0xd0 && tag <= 0xd3) body = (size_t)1 << (tag - 0xd0);
    else return 0; /* extensions: the contract has none */
    if (wide) {
        if (left < 1 + wide) return 0;
        size_t count = 0;
        for (size_t i = 0; i < wide; i++) count = count << 8 | at[1 + i];
        head += wide;
        if (tag >= 0xde) items = 2 * count;
        else if (tag >= 0xdc) items = count;
        else body = count;
    }
    if (body > left - head || items > left - head) return 0;
    size_t used = head + body;
    for (; items; items--) {
        size_t inner = value_bytes(at + used, left - used, depth + 1);
        if (inner == 0) return 0;
        used += inner;
    }
    return used;
}

const msgpack_object *get(const msgpack_object *map, const char *key) {
    if (map->type != MSGPACK_OBJECT_MAP) return NULL;
    for (uint32_t i = 0; i < map->via.map.size; i++)
        if (is_text(&map->via.map.ptr[i].key, key)) return &map->via.map.ptr[i].val;
    return NULL;
}

bool is_text(const msgpack_object *object, const char *text) {
    return object && object->type == MSGPACK_OBJECT_STR && object->via.str.size == strlen(text) &&
           memcmp(object->via.str.ptr, text, object->via.str.size) == 0;
}

bool is_absent(const msgpack_object *object) { return object == NULL || object->type == MSGPACK_OBJECT_NIL; }

bool is_true(const msgpack_object *object) { return object && object->type == MSGPACK_OBJECT_BOOLEAN && object->via.boolean; }

static bool read_int(const msgpack_object *object, int64_t least, int64_t most, int64_t *value) {
    if (!object) return false;
    if (object->type == MSGPACK_OBJECT_POSITIVE_INTEGER && object->via.u64 <= INT64_MAX) *value = (int64_t)object->via.u64;
    else if (object->type == MSGPACK_OBJECT_NEGATIVE_INTEGER) *value = object->via.i64;
    else return false;
    return *value >= least && *value <= most;
}

bool get_int(const msgpack_object *map, const char *key, int64_t least, int64_t most, int64_t *value) {
    return read_int(get(map, key), least, most, value);
}

bool get_number(const msgpack_object *map, const char *key, double least, double most, double *value) {
    const msgpack_object *object = get(map, key);
    int64_t whole;
    if (object && (object->type == MSGPACK_OBJECT_FLOAT64 || object->type == MSGPACK_OBJECT_FLOAT32)) *value = object->via.f64;
    else if (read_int(object, INT64_MIN, INT64_MAX, &whole)) *value = (double)whole;
    else return false;
    return *value >= least && *value <= most;
}

bool get_text(const msgpack_object *map, const char *key, char *text, size_t room) {
    const msgpack_object *object = get(map, key);
    if (!object || object->type != MSGPACK_OBJECT_STR || object->via.str.size >= room) return false;
    if (memchr(object->via.str.ptr, 0, object->via.str.size)) return false;
    memcpy(text, object->via.str.ptr, object->via.str.size);
    text[object->via.str.size] = 0;
    return true;
}

bool get_array(const msgpack_object *map, const char *key, size_t most, msgpack_object_array *array) {
    const msgpack_object *object = get(map, key);
    if (!object || object->type != MSGPACK_OBJECT_ARRAY || object->via.array.size > most) return false;
    *array = object->via.array;
    return true;
}

static const struct { const char *name; size_t bytes; } kinds[] = {
    {"int8", 1}, {"uint8", 1}, {"int32", 4}, {"int64", 8}, {"float32", 4}};

bool read_tensor(const msgpack_object *object, struct tensor *tensor) {
    msgpack_object_array shape;
    const msgpack_object *data = object ? get(object, "data") : NULL;
    size_t item = 0;
    if (!data || data->type != MSGPACK_OBJECT_BIN || !get_array(object, "shape", AXES, &shape)) return false;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (is_text(get(object, "dtype"), kinds[i].name)) tensor->dtype = kinds[i].name, item = kinds[i].bytes;
    if (!item) return false;
    tensor->axes = shape.size;
    tensor->count = 1;
    for (unsigned i = 0; i < shape.size; i++) {
        int64_t length;
        if (!read_int(&shape.ptr[i], 0, (int64_t)ELEMENTS_MAX, &length)) return false;
        tensor->shape[i] = (uint64_t)length;
        tensor->count *= (size_t)length; /* at most 2^56 before the check */
        if (tensor->count > ELEMENTS_MAX) return false;
    }
    tensor->bytes = tensor->count * item;
    tensor->data = (const uint8_t *)data->via.bin.ptr;
    return tensor->bytes == data->via.bin.size;
}

/* ---- msgpack out ---- */

struct tensor tensor_of(const char *dtype, unsigned axes, const uint64_t *shape, const void *data) {
    struct tensor made = {.dtype = dtype, .axes = axes, .count = 1, .data = data};
    for (unsigned i = 0; i < axes; i++) made.shape[i] = shape[i], made.count *= shape[i];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(dtype, kinds[i].name) == 0) made.bytes = made.count * kinds[i].bytes;
    return made;
}

void put_text(msgpack_packer *packer, const char *text) {
    msgpack_pack_str(packer, strlen(text));
    msgpack_pack_str_body(packer, text, strlen(text));
}

void put(msgpack_packer *packer, const struct field *fields) {
    for (const struct field *one = fields; one->key; one++) {
        put_text(packer, one->key);
        if (one->kind == IS_TEXT) put_text(packer, one->text);
        else if (one->kind == IS_INT) msgpack_pack_int64(packer, one->number);
        else if (one->kind == IS_TENSOR) put_tensor(packer, one->tensor);
        else one->number ? msgpack_pack_true(packer) : msgpack_pack_false(packer);
    }
}

static void put_bytes_at(msgpack_packer *packer, const char *key, const void *data, size_t size) {
    put_text(packer, key);
    msgpack_pack_bin(packer, size);
    msgpack_pack_bin_body(packer, data, size);
}

void put_tensor(msgpack_packer *packer, const struct tensor *tensor) {
    msgpack_pack_map(packer, 3);
    put(packer, FIELDS(TEXT("dtype", tensor->dtype)));
    put_text(packer, "shape");
    msgpack_pack_array(packer, tensor->axes);
    for (unsigned i = 0; i < tensor->axes; i++) msgpack_pack_uint64(packer, tensor->shape[i]);
    put_bytes_at(packer, "data", tensor->data, tensor->bytes);
}

/* ---- sending ---- */

const char *bus_device(const struct bus *bus) { return bus->device; }

static void publish(struct bus *bus, const char *name, const msgpack_sbuffer *packet, int qos, bool retain) {
    char topic[256];
    snprintf(topic, sizeof topic, "%s/%s", bus->root, name);
    int rc = mosquitto_publish(bus->mosquitto, NULL, topic, (int)packet->size, packet->data, qos, retain);
    if (rc != MOSQ_ERR_SUCCESS && qos > 0) fprintf(stderr, "%s: not sent: %s\n", topic, mosquitto_strerror(rc));
}

void begin(struct draft *draft, const char *type, const char *session, unsigned fields) {
    msgpack_sbuffer_init(&draft->bytes);
    msgpack_packer_init(&draft->packer, &draft->bytes, msgpack_sbuffer_write);
    msgpack_pack_map(&draft->packer, 2 + fields);
    put(&draft->packer, FIELDS(TEXT("type", type), TEXT("session", session)));
}

void drop(struct draft *draft) { msgpack_sbuffer_destroy(&draft->bytes); }

static void finish(struct bus *bus, const char *name, struct draft *draft, int qos, bool retain) {
    publish(bus, name, &draft->bytes, qos, retain);
    drop(draft);
}

void bus_send(struct bus *bus, const char *name, const char *session, struct draft *draft) {
    const msgpack_sbuffer *whole = &draft->bytes;
    if (whole->size <= bus->packet) {
        finish(bus, name, draft, 1, false);
        return;
    }
    unsigned char digest[16]; /* big-endian is xxhash's canonical form */
    XXH128_canonicalFromHash((XXH128_canonical_t *)digest, XXH3_128bits(whole->data, whole->size));
    struct draft part;
    begin(&part, "manifest", session, 3);
    put(&part.packer, FIELDS(INT("length", (int64_t)whole->size), INT("chunk", (int64_t)bus->packet)));
    put_bytes_at(&part.packer, "digest", digest, sizeof digest);
    finish(bus, name, &part, 1, false);
    for (size_t from = 0; from < whole->size; from += bus->packet) {
        size_t left = whole->size - from;
        begin(&part, "chunk", session, 3);
        put_bytes_at(&part.packer, "digest", digest, sizeof digest);
        put(&part.packer, FIELDS(INT("index", (int64_t)(from / bus->packet))));
        put_bytes_at(&part.packer, "data", whole->data + from, left < bus->packet ? left : bus->packet);
        finish(bus, name, &part, 1, false);
    }
    drop(draft);
}

static void state(struct bus *bus, struct draft *draft, bool online, unsigned fields, void (*more)(msgpack_packer *)) {
    begin(draft, "state", "", 3 + fields);
    put(&draft->packer, FIELDS(TEXT("service", bus->service->name), TEXT("boot", bus->boot), BOOL("online", online)));
    if (more) more(&draft->packer);
}

void bus_announce(struct bus *bus, bool online, unsigned fields, void (*more)(msgpack_packer *packer)) {
    char name[NAME_MAX_BYTES + 8];
    struct draft draft;
    state(bus, &draft, online, fields, more);
    snprintf(name, sizeof name, "state/%s", bus->service->name);
    finish(bus, name, &draft, 1, true);
}

void bus_timing(struct bus *bus, const char *session, const char *stage, int64_t iteration, int64_t segment, double seconds) {
    char name[NAME_MAX_BYTES + 8];
    struct draft draft;
    begin(&draft, "timing", session, 4);
    put(&draft.packer, FIELDS(TEXT("stage", stage), INT("iteration", iteration), INT("segment", segment)));
    put_text(&draft.packer, "host_s");
    msgpack_pack_double(&draft.packer, seconds);
    snprintf(name, sizeof name, "event/%s", stage);
    finish(bus, name, &draft, 0, false);
}

/* ---- receiving ---- */

static void forget(struct transfer *transfer) {
    free(transfer->data);
    free(transfer->here);
    memset(transfer, 0, sizeof *transfer);
}

static struct transfer *find(struct bus *bus, const char *name, const unsigned char *digest) {
    for (int i = 0; i < TRANSFERS; i++) {
        struct transfer *one = &bus->transfers[i];
        if (one->used && memcmp(one->digest, digest, 16) == 0 && strcmp(one->name, name) == 0) return one;
    }
    return NULL;
}

static const char *expect(struct bus *bus, const char *name, const unsigned char *digest, const msgpack_object *manifest) {
    int64_t length, chunk;
    if (!get_int(manifest, "length", 1, (int64_t)MESSAGE_MAX, &length)) return "manifest: length is no size that is taken";
    if (!get_int(manifest, "chunk", SMALLEST_CHUNK, (int64_t)MESSAGE_MAX, &chunk)) return "manifest: chunk is no size that is taken";
    if (find(bus, name, digest)) return NULL; /* again */
    struct transfer *oldest = &bus->transfers[0];
    for (int i = 0; i < TRANSFERS; i++) {
        struct transfer *one = &bus->transfers[i];
        if (!one->used || (oldest->used && one->age < oldest->age)) oldest = one;
    }
    forget(oldest);
    oldest->data = malloc((size_t)length);
    oldest->here = calloc((size_t)(length / chunk) + 1, 1);
    if (!oldest->data || !oldest->here || strlen(name) >= sizeof oldest->name) {
        forget(oldest);
        return "manifest: no memory for it";
    }
    oldest->used = true;
    oldest->length = (size_t)length;
    oldest->chunk = (size_t)chunk;
    oldest->age = ++bus->clock;
    memcpy(oldest->digest, digest, 16);
    strcpy(oldest->name, name);
    return NULL;
}

static const char *take(struct bus *bus, const char *name, const uint8_t *data, size_t size, bool whole);

static const char *add(struct bus *bus, const char *name, const unsigned char *digest, const msgpack_object *chunk) {
    struct transfer *to = find(bus, name, digest);
    const msgpack_object *data = get(chunk, "data");
    int64_t index;
    if (!to) return NULL; /* whole already, or its manifest never came: who needs it asks again */
    int64_t last = (int64_t)((to->length - 1) / to->chunk);
    if (!get_int(chunk, "index", 0, last, &index) || !data || data->type != MSGPACK_OBJECT_BIN) return "chunk: not as its manifest";
    size_t from = (size_t)index * to->chunk, wanted = index < last ? to->chunk : to->length - from;
    if (data->via.bin.size != wanted) return "chunk: not as long as its manifest says";
    memcpy(to->data + from, data->via.bin.ptr, wanted);
    to->held += !to->here[index];
    to->here[index] = 1;
    if (to->held <= (size_t)last) return NULL;
    unsigned char found[16];
    XXH128_canonicalFromHash((XXH128_canonical_t *)found, XXH3_128bits(to->data, to->length));
    const char *wrong = memcmp(found, to->digest, 16) ? "chunks: they have not the digest of their manifest"
                                                      : take(bus, name, to->data, to->length, true);
    forget(to);
    return wrong;
}

static const char *give(struct bus *bus, const char *name, const msgpack_object *message) {
    char session[NAME_MAX_BYTES + 1];
    if (!get_text(message, "session", session, sizeof session)) return "session is no text of 64 bytes at most";
    for (const struct listens *one = bus->service->listens; one->name; one++)
        if (strcmp(name, one->name) == 0 && is_text(get(message, "type"), one->type)) return one->take(bus, session, message);
    return "type is not that of the topic";
}

/* A reason to drop a packet, or NULL. */
static const char *take(struct bus *bus, const char *name, const uint8_t *data, size_t size, bool whole) {
    msgpack_unpacked unpacked;
    int64_t version = 1;
    if (value_bytes(data, size, 0) != size) return "not one msgpack value";
    msgpack_unpacked_init(&unpacked);
    if (msgpack_unpack_next(&unpacked, (const char *)data, size, NULL) != MSGPACK_UNPACK_SUCCESS) {
        msgpack_unpacked_destroy(&unpacked);
        return "not one msgpack value";
    }
    const msgpack_object *message = &unpacked.data, *digest = get(message, "digest");
    bool part = is_text(get(message, "type"), "manifest") || is_text(get(message, "type"), "chunk");
    const char *wrong;
    if (message->type != MSGPACK_OBJECT_MAP) wrong = "not a map";
    else if (get(message, "v") && (!get_int(message, "v", 1, 1, &version))) wrong = "of another version of the contract";
    else if (part && whole) wrong = "chunks within chunks";
    else if (part && (!digest || digest->type != MSGPACK_OBJECT_BIN || digest->via.bin.size != 16)) wrong = "no digest of 16 bytes";
    else if (is_text(get(message, "type"), "manifest")) wrong = expect(bus, name, (const unsigned char *)digest->via.bin.ptr, message);
    else if (part) wrong = add(bus, name, (const unsigned char *)digest->via.bin.ptr, message);
    else wrong = give(bus, name, message);
    msgpack_unpacked_destroy(&unpacked);
    return wrong;
}

static void on_message(struct mosquitto *mosquitto, void *context, const struct mosquitto_message *packet) {
    struct bus *bus = context;
    (void)mosquitto;
    size_t root = strlen(bus->root);
    if (packet->payloadlen <= 0 || strncmp(packet->topic, bus->root, root) || packet->topic[root] != '/') return;
    const char *wrong = take(bus, packet->topic + root + 1, packet->payload, (size_t)packet->payloadlen, false);
    if (wrong) fprintf(stderr, "%s: dropped: %s\n", packet->topic, wrong);
}

static void on_connect(struct mosquitto *mosquitto, void *context, int code) {
    struct bus *bus = context;
    if (code) {
        fprintf(stderr, "the broker refuses: %s\n", mosquitto_connack_string(code));
        return;
    }
    for (const struct listens *one = bus->service->listens; one->name; one++) {
        char topic[256];
        snprintf(topic, sizeof topic, "%s/%s", bus->root, one->name);
        mosquitto_subscribe(mosquitto, NULL, topic, 1);
    }
    bus->service->connected(bus);
}

/* ---- life ---- */

/* The file that a variable names, else that of the folder R2F_IDENTITY, which r2f provision makes; NULL where neither is set. */
static const char *identity(const char *variable, const char *name, char *into, size_t room) {
    const char *file = getenv(variable), *folder = getenv("R2F_IDENTITY");
    if ((file && *file) || !folder || !*folder) return file && *file ? file : NULL;
    return snprintf(into, room, "%s/%s", folder, name) < (int)room ? into : NULL;
}

static bool connect_to(struct bus *bus, const char *broker) {
    char url[512], *at = url, *end;
    bool tls = strncmp(broker, "mqtts://", 8) == 0;
    if ((!tls && strncmp(broker, "mqtt://", 7)) || strlen(broker) >= sizeof url) return false;
    strcpy(url, broker + (tls ? 8 : 7));
    char *user = NULL, *password = getenv("R2F_PASSWORD"), *host = strrchr(url, '@');
    if (host) {
        *host = 0;
        user = at;
        at = host + 1;
        if (strchr(user, ':'))
            return fprintf(stderr, "every user of this host sees a password among the arguments: use R2F_PASSWORD\n"), false;
    }
    char *port = strrchr(at, ':');
    long number = tls ? 8883 : 1883;
    if (port) {
        *port = 0;
        number = strtol(port + 1, &end, 10);
        if (*end || number < 1 || number > 65535) return false;
    }
    if (user && mosquitto_username_pw_set(bus->mosquitto, user, password)) return false;
    char ca[4096], certificate[4096], key[4096];
    if (tls && mosquitto_tls_set(bus->mosquitto, identity("R2F_CA_FILE", "ca.pem", ca, sizeof ca), "/etc/ssl/certs",
                                 identity("R2F_CERT_FILE", "certificate.pem", certificate, sizeof certificate),
                                 identity("R2F_KEY_FILE", "key.pem", key, sizeof key), NULL))
        return false;
    mosquitto_int_option(bus->mosquitto, MOSQ_OPT_TCP_NODELAY, 1); /* else small answers wait for acknowledgements: 40 ms each */
    while (!stopping && mosquitto_connect(bus->mosquitto, at, (int)number, 30) != MOSQ_ERR_SUCCESS) {
        fprintf(stderr, "no broker at %s:%ld: %s; trying again\n", at, number, strerror(errno));
        sleep(1);
    }
    return true;
}

int bus_serve(const struct service *service, const char *broker, const char *device) {
    struct bus bus = {.service = service, .device = device, .packet = PACKET};
    const char *given = getenv("R2F_PACKET_BYTES");
    char identifier[2 * NAME_MAX_BYTES + 40], topic[256];
    unsigned char random[16];
    FILE *source = fopen("/dev/urandom", "rb");
    if (!source || fread(random, 1, sizeof random, source) != sizeof random) return perror("/dev/urandom"), 1;
    fclose(source);
    for (int i = 0; i < 16; i++) snprintf(bus.boot + 2 * i, 3, "%02x", random[i]);
    if (!*device || strlen(device) > NAME_MAX_BYTES || strpbrk(device, "/+#")) return fprintf(stderr, "--device %s: no name\n", device), 1;
    if (given) {
        long bytes = strtol(given, NULL, 10);
        if (bytes < 1024) return fprintf(stderr, "R2F_PACKET_BYTES=%s: 1024 at least\n", given), 1;
        if ((size_t)bytes - 512 < bus.packet) bus.packet = (size_t)bytes - 512;
    }
    snprintf(bus.root, sizeof bus.root, "r2f/v1/%s", device);
    snprintf(identifier, sizeof identifier, "%s-%s-%s", service->name, device, bus.boot);
    snprintf(topic, sizeof topic, "%s/state/%s", bus.root, service->name);
    mosquitto_lib_init();
    bus.mosquitto = mosquitto_new(identifier, true, &bus);
    if (!bus.mosquitto) return perror("mosquitto_new"), 1;
    struct draft will;
    state(&bus, &will, false, 0, NULL);
    mosquitto_will_set(bus.mosquitto, topic, (int)will.bytes.size, will.bytes.data, 1, true);
    drop(&will);
    mosquitto_connect_callback_set(bus.mosquitto, on_connect);
    mosquitto_message_callback_set(bus.mosquitto, on_message);
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    if (!connect_to(&bus, broker)) return fprintf(stderr, "--broker: expected mqtt[s]://[user@]host:port\n"), 1;
    while (!stopping) {
        int rc = mosquitto_loop(bus.mosquitto, 100, 1);
        if (rc == MOSQ_ERR_SUCCESS || stopping) continue;
        fprintf(stderr, "the broker is gone (%s); trying again\n", mosquitto_strerror(rc));
        sleep(1);
        mosquitto_reconnect(bus.mosquitto);
    }
    bus_announce(&bus, false, 0, NULL);
    for (int i = 0; i < 10; i++) mosquitto_loop(bus.mosquitto, 20, 1);
    mosquitto_disconnect(bus.mosquitto);
    mosquitto_destroy(bus.mosquitto);
    for (int i = 0; i < TRANSFERS; i++) forget(&bus.transfers[i]);
    mosquitto_lib_cleanup();
    return 0;
}
