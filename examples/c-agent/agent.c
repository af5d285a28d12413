/* An edge device of R2F in C, from docs/bus.md: it runs the int8 network that it is sent, on images of its own, and makes errors:
   bits of MAC layers' outputs flip at the rate that it is told.

   c-agent mqtt://127.0.0.1:1883 edge-0 FOLDER
   FOLDER: train_images.npy, train_labels.npy, test_images.npy and test_labels.npy, uint8 (N, H, W, C) and int64 (N,); an .npz is a
   zip of them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "../c-common/bus.h"
#include "network.h"

#define BATCH_MAX 4096
#define MEMORY_MAX ((size_t)1 << 29) /* of a pass's activations */
#define MACS_MAX 1e12                /* of a pass */
#define SEGMENT_BYTES ((size_t)512 * 1024)
#define RUNS_MAX 7
#define PROTECTED_MAX 256

struct set {
    uint64_t count, h, w, c;
    uint8_t *images;
    int64_t *labels;
};

struct forward {
    bool waits, training, reliable;
    char session[NAME_MAX_BYTES + 1];
    int64_t iteration, attempt, version, seed, nonce;
    bool has_seed, has_rate;
    double rate;
    const struct set *set;
    size_t count;
    uint32_t samples[BATCH_MAX];
    struct { bool given, flip; int64_t seed, shift; } view;
    const char *refused; /* why it cannot be run */
};

static struct device {
    struct set train, test;
    char session[NAME_MAX_BYTES + 1];
    int64_t version;
    struct network *network;
    char mode_session[NAME_MAX_BYTES + 1]; /* empty without a mode */
    bool direct, median;
    double rate;
    int64_t seed, runs;
    unsigned protected_count;
    int64_t protected[PROTECTED_MAX];
    struct forward forward;
} device;

/* ---- what it photographs ---- */

static bool read_npy(const char *folder, const char *name, const char *dtype, size_t item, int axes, uint64_t *shape, void **data) {
    char path[1024], header[1 << 16] = "", wanted[80], *at = header;
    unsigned char start[10];
    size_t count = 1;
    snprintf(path, sizeof path, "%s/%s.npy", folder, name);
    snprintf(wanted, sizeof wanted, "{'descr': '%s', 'fortran_order': False, 'shape': (", dtype); /* as NumPy writes it */
    FILE *file = fopen(path, "rb");
    bool read = file && fread(start, 1, 10, file) == 10 && memcmp(start, "\x93NUMPY\x01", 7) == 0;
    read = read && fread(header, 1, (size_t)(start[8] | start[9] << 8), file) > 0 && strncmp(header, wanted, strlen(wanted)) == 0;
    at += read ? strlen(wanted) : 0;
    for (int i = 0; read && i < axes; i++, at += strspn(at, ", ")) {
        shape[i] = strtoull(at, &at, 10);
        read = shape[i] > 0 && shape[i] < ((uint64_t)1 << 28) && (count *= shape[i]) < ((uint64_t)1 << 32);
    }
    read = read && *at == ')' && (*data = malloc(count * item)) && fread(*data, item, count, file) == count;
    if (file) fclose(file);
    if (!read) fprintf(stderr, "%s: not there, or no .npy of %d axes and dtype %s in C order\n", path, axes, dtype);
    return read;
}

static bool read_set(const char *folder, const char *images, const char *labels, struct set *set) {
    uint64_t shape[4], count;
    void *pixels, *classes;
    if (!read_npy(folder, images, "|u1", 1, 4, shape, &pixels) || !read_npy(folder, labels, "<i8", 8, 1, &count, &classes)) return false;
    *set = (struct set){.count = shape[0], .h = shape[1], .w = shape[2], .c = shape[3], .images = pixels, .labels = classes};
    if (count != set->count) fprintf(stderr, "%s: %llu labels of %llu images\n", labels, (unsigned long long)count, (unsigned long long)set->count);
    return count == set->count;
}

/* ---- answers ---- */

static void pack_samples(msgpack_packer *packer) {
    put_text(packer, "samples");
    msgpack_pack_map(packer, 2);
    put(packer, FIELDS(INT("train", (int64_t)device.train.count), INT("test", (int64_t)device.test.count)));
    put(packer, FIELDS(INT("version", device.version)));
}

static void announce(struct bus *bus) { bus_announce(bus, true, 2, pack_samples); }

static void acknowledge(struct bus *bus, const char *session, const char *of, int64_t seq, const char *error) {
    struct draft ack;
    begin(&ack, "ack", session, 5);
    put(&ack.packer, FIELDS(TEXT("of", of), INT("seq", seq), BOOL("ok", error == NULL), INT("version", device.version), TEXT("error", error ? error : "")));
    bus_send(bus, "up/ack", session, &ack);
    if (error) fprintf(stderr, "%s %lld refused: %s\n", of, (long long)seq, error);
}

/* A message of the pass; `fields` are those behind its number. */
static void begin_answer(struct draft *draft, const char *type, unsigned fields) {
    begin(draft, type, device.forward.session, 2 + fields);
    put(&draft->packer, FIELDS(INT("iteration", device.forward.iteration), INT("attempt", device.forward.attempt)));
}

static struct tensor activation(const struct layer *layer, const uint8_t *data) {
    const uint64_t shape[] = {device.forward.count, (uint64_t)layer->h, (uint64_t)layer->w, (uint64_t)layer->c};
    return tensor_of(layer->is_signed ? "int8" : "uint8", 4, shape, data);
}

/* ---- a pass ---- */

/* The uniform numbers of one execution's faults: of the same run the same, whenever it is asked for again. */
static uint64_t next(uint64_t *state) { return *state += 0x9E3779B97F4A7C15u, XXH3_64bits(state, sizeof *state); }

static void flip(struct bus *bus, double rate, int64_t seed, int index, int64_t run, uint8_t *out, size_t size) {
    int64_t key[4] = {seed, device.forward.iteration, index, run};
    uint64_t state = XXH3_64bits_withSeed(key, sizeof key, XXH3_64bits(bus_device(bus), strlen(bus_device(bus))));
    if (!(rate > 0)) return;
    for (double bit = 0;; bit += 1) {
        double uniform = ((double)(next(&state) >> 11) + 0.5) / 9007199254740992.0;
        bit += rate < 1 ? floor(log(uniform) / log1p(-rate)) : 0; /* bits until the next flip */
        if (!(bit < 8.0 * (double)size)) return;
        out[(size_t)bit / 8] ^= (uint8_t)(1u << ((size_t)bit % 8));
    }
}

static void vote3(const uint8_t *runs, bool is_signed, size_t size, uint8_t *out) {
    uint8_t turn = is_signed ? 0x80 : 0; /* with the sign bit turned, int8 are in the order of uint8 */
    for (size_t i = 0; i < size; i++) {
        uint8_t a = runs[i] ^ turn, b = runs[size + i] ^ turn, c = runs[2 * size + i] ^ turn;
        uint8_t low = a < b ? a : b, high = a < b ? b : a, median = high < c ? high : low > c ? low : c;
        out[i] = turn ^ (device.median ? median : (a & b) | (c & (a | b)));
    }
}

/* What the network sees of an image: mirrored and moved (docs/bus.md, "The view"). */
static uint8_t seen(const struct forward *f, const uint8_t *image, uint64_t place, uint64_t y, uint64_t x, uint64_t c) {
    int64_t h = (int64_t)f->set->h, w = (int64_t)f->set->w, wide = 2 * f->view.shift + 1;
    uint64_t key[2] = {(uint64_t)f->view.seed, place}, hash = f->view.given ? XXH3_64bits(key, sizeof key) : 0;
    int64_t row = (int64_t)y - ((int64_t)((hash >> 1) % ((uint64_t)1 << 31)) % wide - f->view.shift);
    int64_t column = (int64_t)x - ((int64_t)(hash >> 32) % wide - f->view.shift);
    row = row < 0 ? 0 : row >= h ? h - 1 : row; /* what moves in repeats the edge */
    column = column < 0 ? 0 : column >= w ? w - 1 : column;
    if (f->view.flip && hash & 1) column = w - 1 - column;
    return image[((uint64_t)(row * w + column)) * f->set->c + c];
}

static void send_inputs(struct bus *bus, const uint8_t *images, const struct tensor *labels) {
    const struct forward *f = &device.forward;
    const struct tensor pixels = tensor_of("uint8", 4, (uint64_t[]){f->count, f->set->h, f->set->w, f->set->c}, images);
    struct draft inputs;
    begin_answer(&inputs, "inputs", 2 + f->view.given);
    put(&inputs.packer, FIELDS(TENSOR("images", &pixels), TENSOR("labels", labels)));
    if (f->view.given) {
        put_text(&inputs.packer, "view");
        msgpack_pack_map(&inputs.packer, 3);
        put(&inputs.packer, FIELDS(INT("seed", f->view.seed), BOOL("flip", f->view.flip), INT("shift", f->view.shift)));
    }
    bus_send(bus, "edge/inputs", f->session, &inputs);
}

/* A MAC layer of a segment: its outputs one execution behind the other. */
struct executed {
    int index;
    bool protected;
    int64_t count;
    uint8_t *runs;
};

static void send_segment(struct bus *bus, int64_t number, const struct executed *layers, unsigned count, double start) {
    const struct forward *f = &device.forward;
    struct draft segment;
    begin_answer(&segment, "replicas", 4);
    put(&segment.packer, FIELDS(INT("segment", number), TEXT("mode", "training"), TEXT("vote", device.median ? "median" : "bitwise")));
    put_text(&segment.packer, "layers");
    msgpack_pack_array(&segment.packer, count);
    for (unsigned i = 0; i < count; i++) {
        const struct layer *layer = &device.network->layers[layers[i].index];
        msgpack_pack_map(&segment.packer, 4);
        put(&segment.packer, FIELDS(INT("index", layers[i].index), BOOL("protected", layers[i].protected), BOOL("direct", device.direct)));
        put_text(&segment.packer, "replicas");
        msgpack_pack_array(&segment.packer, (size_t)layers[i].count);
        for (int64_t r = 0; r < layers[i].count; r++) {
            struct tensor tensor = activation(layer, layers[i].runs + (size_t)r * f->count * layer_size(layer));
            put_tensor(&segment.packer, &tensor);
        }
    }
    bus_send(bus, "edge/replicas", f->session, &segment);
    bus_timing(bus, f->session, "forward", f->iteration, number, now_s() - start);
}

/* Run the network on `values`, its input; the last layer's output. Behind it is room for all outputs, then for `runs` of each. */
static uint8_t *pass(struct bus *bus, uint8_t *values, uint8_t *runs) {
    static uint8_t *of[LAYERS_MAX + 1]; /* the input and each layer's output */
    static struct executed segment[LAYERS_MAX];
    const struct forward *f = &device.forward;
    double rate = f->reliable ? 0 : f->has_rate ? f->rate : device.rate, start = now_s();
    int64_t seed = f->has_seed ? f->seed : device.seed, number = 0;
    unsigned gathered = 0;
    size_t bytes = 0;
    uint8_t *free_values = values + f->count * f->set->h * f->set->w * f->set->c, *free_runs = runs;
    of[0] = values;
    for (int i = 0; i < device.network->count; i++) {
        const struct layer *layer = &device.network->layers[i];
        const uint8_t *operands[OPERANDS];
        size_t size = f->count * layer_size(layer);
        for (int k = 0; k < layer->operands; k++) operands[k] = of[layer->inputs[k] + 1];
        of[i + 1] = free_values, free_values += size;
        layer_run(device.network, i, operands, f->count, of[i + 1]);
        if (layer->kind != CONV) continue;
        struct executed *to = &segment[gathered++];
        *to = (struct executed){.index = i, .count = f->training && !device.direct ? device.runs : 1, .runs = free_runs};
        for (unsigned p = 0; p < device.protected_count && !f->reliable; p++) to->protected |= device.protected[p] == i;
        if (to->protected && to->count < 3) to->count = 3;
        for (int64_t r = 0; r < to->count; r++, free_runs += size) flip(bus, rate, seed, i, r, memcpy(free_runs, of[i + 1], size), size);
        if (to->protected) vote3(to->runs, layer->is_signed, size, of[i + 1]);
        else memcpy(of[i + 1], to->runs, size);
        bytes += size;
        if (!f->training || bytes >= SEGMENT_BYTES) {
            if (f->training) send_segment(bus, number++, segment, gathered, start);
            gathered = 0, bytes = 0, start = now_s(), free_runs = runs;
        }
    }
    if (gathered) send_segment(bus, number, segment, gathered, start);
    return of[device.network->count];
}

/* Why the pass cannot be, or NULL. */
static const char *run(struct bus *bus) {
    const struct forward *f = &device.forward;
    const struct network *network = device.network;
    const struct set *set = f->set;
    const struct layer *last = &network->layers[network->count - 1];
    size_t image = set->h * set->w * set->c, input = f->count * image, outputs = 0;
    if ((int64_t)set->h != network->h || (int64_t)set->w != network->w || (int64_t)set->c != network->c) return "the network is for images of another size";
    if (!f->training && (last->h != 1 || last->w != 1)) return "the network's output is no vector";
    for (int i = 0; i < network->count; i++) outputs += f->count * layer_size(&network->layers[i]);
    size_t memory = 8 * f->count + 2 * input + outputs * (size_t)(1 + device.runs);
    if (memory > MEMORY_MAX || network->macs * (double)f->count > MACS_MAX) return "the pass is larger than this device takes";
    int64_t *classes = malloc(memory);
    if (!classes) return "no memory for the pass";
    uint8_t *images = (uint8_t *)(classes + f->count), *values = images + input;
    for (size_t i = 0; i < f->count; i++) {
        const uint8_t *from = memcpy(images + i * image, set->images + f->samples[i] * image, image);
        classes[i] = set->labels[f->samples[i]];
        for (size_t at = 0; at < image; at++) {
            uint64_t c = at % set->c, x = at / set->c % set->w, y = at / set->c / set->w;
            values[i * image + at] = network->input_table[c * 256 + seen(f, from, i, y, x, c)];
        }
    }
    const struct tensor labels = tensor_of("int64", 1, (uint64_t[]){f->count}, classes);
    if (f->training) send_inputs(bus, images, &labels);
    const struct tensor made = activation(last, pass(bus, values, values + input + outputs));
    if (!f->training) {
        struct draft answer;
        begin_answer(&answer, "outputs", 3);
        put(&answer.packer, FIELDS(INT("nonce", f->nonce), TENSOR("outputs", &made), TENSOR("labels", &labels)));
        bus_send(bus, "up/outputs", f->session, &answer);
    }
    free(classes);
    return NULL;
}

/* ---- commands ---- */

/* Another run's command: nothing of the one before is left. */
static void enter(const char *session) {
    if (strcmp(device.session, session) == 0) return;
    strcpy(device.session, session);
    network_free(device.network);
    device.network = NULL;
    device.version = 0;
}

/* The forward that waits, once its network and mode are here. */
static void start(struct bus *bus) {
    struct forward *f = &device.forward;
    if (!f->waits || !*device.mode_session || !device.network || f->version != device.version) return;
    if (strcmp(f->session, device.session) || strcmp(f->session, device.mode_session)) return;
    f->waits = false;
    const char *error = f->refused ? f->refused : run(bus);
    if (error) acknowledge(bus, f->session, "forward", f->iteration, error);
}

/* The rate and seed of faults that a message names; what it leaves out stays. */
static const char *read_faults(const msgpack_object *message, double *rate, int64_t *seed) {
    const msgpack_object *rates = get(message, "rates");
    if (!is_absent(rates)) *rate = 0;
    if (!is_absent(rates) && get(rates, "output") && !get_number(rates, "output", 0, 1, rate)) return "rates.output is no share";
    if (!is_absent(get(message, "seed")) && !get_int(message, "seed", INT64_MIN, INT64_MAX, seed)) return "seed is no number";
    return NULL;
}

static const char *read_mode(const msgpack_object *message, const char **refused) {
    static const msgpack_object none = {.type = MSGPACK_OBJECT_MAP};
    const msgpack_object *scheme = get(message, "scheme"), *known = get(message, "known");
    msgpack_object_array layers = {0};
    if (!scheme) scheme = &none;
    const msgpack_object *codec = get(scheme, "codec"), *port = get(scheme, "ports"), *vote = get(scheme, "vote");
    device.rate = 0, device.seed = 0, device.runs = 3, device.protected_count = 0;
    const char *wrong = read_faults(message, &device.rate, &device.seed);
    if (wrong) return wrong;
    if (get(scheme, "replicas") && !get_int(scheme, "replicas", 3, RUNS_MAX, &device.runs)) return "scheme.replicas is not 3 to 7";
    if (get(scheme, "protected") && !get_array(scheme, "protected", PROTECTED_MAX, &layers)) return "scheme.protected is no array";
    for (uint32_t i = 0; i < layers.size; i++) {
        if (layers.ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER || layers.ptr[i].via.u64 > LAYERS_MAX) return "scheme.protected names no layer";
        device.protected[device.protected_count++] = (int64_t)layers.ptr[i].via.u64;
    }
    if (device.runs % 2 == 0) return "scheme.replicas is even";
    device.direct = is_text(codec, "direct");
    device.median = vote == NULL || is_text(vote, "median");
    int64_t jpeg = 0;
    if (codec && !device.direct && !is_text(codec, "chained")) *refused = "this device has the codecs direct and chained";
    else if (vote && !device.median && !is_text(vote, "bitwise")) *refused = "this device has the votes median and bitwise";
    else if (port && (port->type != MSGPACK_OBJECT_ARRAY || port->via.array.size)) *refused = "this device has no voters at ports";
    else if (!is_absent(get(scheme, "tmr"))) *refused = "this device runs no network three times";
    else if (get(scheme, "jpeg") && (!get_int(scheme, "jpeg", 0, 100, &jpeg) || jpeg)) *refused = "this device's camera has no JPEG";
    else if (known && (known->type != MSGPACK_OBJECT_BIN || known->via.bin.size)) *refused = "this device has no permanent faults";
    return NULL;
}

static const char *take_mode(struct bus *bus, const char *session, const msgpack_object *message) {
    int64_t seq;
    const char *refused = NULL;
    if (!get_int(message, "seq", INT64_MIN, INT64_MAX, &seq)) return "seq is no number";
    enter(session);
    *device.mode_session = 0;
    const char *wrong = read_mode(message, &refused);
    if (wrong) return wrong;
    if (!refused) strcpy(device.mode_session, session);
    acknowledge(bus, session, "mode", seq, refused);
    start(bus);
    return NULL;
}

static const char *take_model(struct bus *bus, const char *session, const msgpack_object *message) {
    int64_t version;
    struct tensor body;
    char why[256];
    if (!get_int(message, "version", 1, INT64_MAX, &version)) return "version is no number from 1";
    if (!read_tensor(get(message, "network"), &body) || strcmp(body.dtype, "uint8")) return "network is no uint8 tensor, or not inline: set R2F_SHM_DIR= for all";
    enter(session);
    if (version != device.version) {
        struct network *network = network_read(body.data, body.bytes, why, sizeof why);
        if (!network) return acknowledge(bus, session, "model", version, why), NULL;
        network_free(device.network);
        device.network = network;
        device.version = version;
        announce(bus);
    }
    acknowledge(bus, session, "model", version, NULL);
    start(bus);
    return NULL;
}

static const char *take_forward(struct bus *bus, const char *session, const msgpack_object *message) {
    static struct forward f;
    msgpack_object_array samples;
    memset(&f, 0, sizeof f);
    strcpy(f.session, session);
    const msgpack_object *view = get(message, "view"), *images = get(message, "images");
    if (!get_int(message, "iteration", 0, INT64_MAX, &f.iteration) || !get_int(message, "attempt", 0, INT64_MAX, &f.attempt) ||
        !get_int(message, "version", 1, INT64_MAX, &f.version))
        return "iteration, attempt or version is no number";
    if (get(message, "nonce") && !get_int(message, "nonce", 0, INT64_MAX, &f.nonce)) return "nonce is no number";
    f.training = is_text(get(message, "mode"), "training");
    if (!f.training && !is_text(get(message, "mode"), "inference")) return "mode is unknown";
    f.set = is_text(get(message, "split"), "train") ? &device.train : &device.test;
    if (f.set == &device.test && !is_text(get(message, "split"), "test")) return "split is neither train nor test";
    f.has_seed = !is_absent(get(message, "seed")), f.has_rate = !is_absent(get(message, "rates"));
    const char *wrong = read_faults(message, &f.rate, &f.seed);
    if (wrong) return wrong;
    f.view.given = !is_absent(view);
    if (f.view.given) {
        f.view.flip = is_true(get(view, "flip"));
        if (!get_int(view, "seed", 0, INT64_MAX, &f.view.seed)) return "view.seed is no number";
        if (get(view, "shift") && !get_int(view, "shift", 0, 64, &f.view.shift)) return "view.shift is not 0 to 64";
    }
    f.reliable = is_true(get(message, "reliable"));
    if (!get_array(message, "samples", UINT32_MAX, &samples)) return "samples is no array";
    if (images && (images->type != MSGPACK_OBJECT_BIN || images->via.bin.size)) f.refused = "this device runs its own images alone";
    else if (f.reliable && f.training) f.refused = "the general-purpose processor runs in inference mode alone";
    else if (samples.size < 1 || samples.size > BATCH_MAX) f.refused = "this device takes 1 to 4096 samples";
    for (uint32_t i = 0; !f.refused && i < samples.size; i++) {
        if (samples.ptr[i].type != MSGPACK_OBJECT_POSITIVE_INTEGER || samples.ptr[i].via.u64 >= f.set->count) f.refused = "a sample is none of this device's";
        else f.samples[f.count++] = (uint32_t)samples.ptr[i].via.u64;
    }
    f.waits = true;
    device.forward = f;
    start(bus);
    return NULL;
}

int main(int count, char **arguments) {
    static const struct listens listens[] = {
        {"down/mode", "setmode", take_mode}, {"down/forward", "forward", take_forward}, {"edge/model", "deploy", take_model}, {0}};
    static const struct service agent = {"agent", listens, announce};
    if (count != 4) return fprintf(stderr, "usage: c-agent mqtt[s]://[user@]host:port DEVICE FOLDER\n"), 2;
    if (!read_set(arguments[3], "train_images", "train_labels", &device.train)) return 1;
    if (!read_set(arguments[3], "test_images", "test_labels", &device.test)) return 1;
    return bus_serve(&agent, arguments[1], arguments[2]);
}
