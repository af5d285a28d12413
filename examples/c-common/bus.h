/* What a service of R2F's bus needs, whatever it does: docs/bus.md in C. Whatever comes in is checked before it is used. */
#ifndef BUS_H
#define BUS_H

#include <msgpack.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_MAX_BYTES 64
#define AXES 8
#define ELEMENTS_MAX ((size_t)1 << 28)

struct tensor {
    const char *dtype; /* one of the contract's names */
    unsigned axes;
    uint64_t shape[AXES];
    size_t count; /* of elements */
    size_t bytes;
    const uint8_t *data;
};

struct bus;

/* What a service listens to: plane/name of the topic and the type of its messages. `take` gets them whole, and gives a reason to drop
   one, or NULL. */
struct listens {
    const char *name, *type;
    const char *(*take)(struct bus *bus, const char *session, const msgpack_object *message);
};
/* Called at each connection, after the subscriptions. */
typedef void (*take_connection)(struct bus *bus);

struct service {
    const char *name;              /* agent or voter */
    const struct listens *listens; /* {0} at the end */
    take_connection connected;
};

/* Serve until SIGTERM or SIGINT; an exit code. `broker` is mqtt[s]://[user@]host:port, the password in R2F_PASSWORD. */
int bus_serve(const struct service *service, const char *broker, const char *device);
const char *bus_device(const struct bus *bus);
/* A message that is being written: begun with its type, session and the number of fields behind those. */
struct draft {
    msgpack_sbuffer bytes;
    msgpack_packer packer;
};
void begin(struct draft *draft, const char *type, const char *session, unsigned fields);
/* Send a whole one, in chunks where it is too large for one packet, and free it. */
void bus_send(struct bus *bus, const char *name, const char *session, struct draft *draft);
void drop(struct draft *draft); /* free it unsent */
/* Publish this service's retained state: what is in it beside type, session, service, boot and online is packed by `more`. */
void bus_announce(struct bus *bus, bool online, unsigned fields, void (*more)(msgpack_packer *packer));
/* event/{stage}, which nobody acts on. */
void bus_timing(struct bus *bus, const char *session, const char *stage, int64_t iteration, int64_t segment, double seconds);
double now_s(void);

/* Reading. Each says whether the key is there and right. */
const msgpack_object *get(const msgpack_object *map, const char *key);
bool get_int(const msgpack_object *map, const char *key, int64_t least, int64_t most, int64_t *value);
bool get_text(const msgpack_object *map, const char *key, char *text, size_t room);
bool get_array(const msgpack_object *map, const char *key, size_t most, msgpack_object_array *array);
bool get_number(const msgpack_object *map, const char *key, double least, double most, double *value);
bool is_text(const msgpack_object *object, const char *text);
bool is_absent(const msgpack_object *object); /* missing or nil */
bool is_true(const msgpack_object *object);
bool read_tensor(const msgpack_object *object, struct tensor *tensor);

/* Writing. */
void put_text(msgpack_packer *packer, const char *text);
void put_tensor(msgpack_packer *packer, const struct tensor *tensor);
struct tensor tensor_of(const char *dtype, unsigned axes, const uint64_t *shape, const void *data);
/* Keys with their values: put(packer, FIELDS(INT("seq", 3), TEXT("of", "mode"))). Who packs the map counts them. */
struct field {
    const char *key;
    enum { IS_TEXT, IS_INT, IS_BOOL, IS_TENSOR } kind;
    const char *text;
    int64_t number;
    const struct tensor *tensor;
};
#define TEXT(k, v) {.key = k, .kind = IS_TEXT, .text = v}
#define INT(k, v) {.key = k, .kind = IS_INT, .number = v}
#define BOOL(k, v) {.key = k, .kind = IS_BOOL, .number = v}
#define TENSOR(k, v) {.key = k, .kind = IS_TENSOR, .tensor = v}
#define FIELDS(...) (const struct field[]){__VA_ARGS__, {.key = NULL}}
void put(msgpack_packer *packer, const struct field *fields);

#endif
