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

struct view {
    bool given, flip;
    int64_t seed, shift;
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
    struct view view;
    const char *refused; /* why it cannot be run */
};

static struct device {
    struct set train, test;
    char session[NAME_MAX_BYTES + 1];
    int64_t version;
    struct network *network;
    bool has_mode, direct, median;
    char mode_session[NAME_MAX_BYTES + 1];
    double rate;
    int64_t seed, runs;
    unsigned protected_count;
    int64_t protected[PROTECTED_MAX];
    struct forward forward;
} device;

/* ---- what it photographs ---- */

static bool read_npy(const char *folder, const char *name, const char *dtype, size_t item, unsigned axes, uint64_t *shape, void **data) {
    char path[1024], header[1 << 16], wanted[64];
    unsigned char start[10];
    snprintf(path, sizeof path, "%s/%s.npy", folder, name);
    FILE *file = fopen(path, "rb");
    bool read = file && fread(start, 1, 10, file) == 10 && memcmp(start, "\x93NUMPY\x01", 7) == 0;
    size_t length = read ? (size_t)start[8] | (size_t)start[9] << 8 : 0, count = 1;
    read = read && fread(header, 1, length, file) == length;
    header[read ? length : 0] = 0;
    snprintf(wanted, sizeof wanted, "'descr': '%s'", dtype);
    const char *at = strstr(header, "'shape': (");
    read = read && at && strstr(header, wanted) && strstr(header, "'fortran_order': False");
    at = read ? at + strlen("'shape': (") : NULL;
    for (unsigned i = 0; read && i < axes; i++) {
        char *end;
        shape[i] = strtoull(at, &end, 10);
        read = end != at && shape[i] > 0 && shape[i] < ((uint64_t)1 << 28) && (count *= shape[i]) < ((uint64_t)1 << 32);
        at = end + strspn(end, ", ");
    }
    read = read && *at == ')' && (*data = malloc(count * item)) && fread(*data, item, count, file) == count;
    if (file) fclose(file);
    if (!read) fprintf(stderr, "%s: not there, or no .npy of %u axes and dtype %s in C order\n", path, axes, dtype);
    return read;
}

static bool read_set(const char *folder, const char *split, struct set *set) {
    char images[32], labels[32];
    uint64_t shape[4], count;
    void *pixels, *classes;
    snprintf(images, sizeof images, "%s_images", split);
    snprintf(labels, sizeof labels, "%s_labels", split);
    if (!read_npy(folder, images, "|u1", 1, 4, shape, &pixels) || !read_npy(folder, labels, "<i8", 8, 1, &count, &classes)) return false;
    *set = (struct set){.count = shape[0], .h = shape[1], .w = shape[2], .c = shape[3], .images = pixels, .labels = classes};
    if (count != set->count) fprintf(stderr, "%s: %llu labels of %llu images\n", labels, (unsigned long long)count, (unsigned long long)set->count);
    return count == set->count;
}

/* ---- answers ---- */

static void pack_samples(msgpack_packer *packer) {
    put_text(packer, "samples");
    msgpack_pack_map(packer, 2);
    put_int_at(packer, "train", (int64_t)device.train.count);
    put_int_at(packer, "test", (int64_t)device.test.count);
    put_int_at(packer, "version", device.version);
}

static void announce(struct bus *bus) { bus_announce(bus, true, 2, pack_samples); }

static void acknowledge(struct bus *bus, const char *session, const char *of, int64_t seq, const char *error) {
    msgpack_sbuffer out;
    msgpack_packer packer;
    msgpack_sbuffer_init(&out);
    msgpack_packer_init(&packer, &out, msgpack_sbuffer_write);
    msgpack_pack_map(&packer, 7);
    put_text_at(&packer, "type", "ack");
    put_text_at(&packer, "session", session);
    put_text_at(&packer, "of", of);
    put_int_at(&packer, "seq", seq);
    put_bool_at(&packer, "ok", error == NULL);
    put_int_at(&packer, "version", device.version);
    put_text_at(&packer, "error", error ? error : "");
    bus_send(bus, "up/ack", session, &out);
    msgpack_sbuffer_destroy(&out);
    if (error) fprintf(stderr, "%s %lld refused: %s\n", of, (long long)seq, error);
}

/* The head of a message of a pass; `fields` are those behind. */
static void head(msgpack_packer *packer, msgpack_sbuffer *out, const char *type, unsigned fields) {
    msgpack_sbuffer_init(out);
    msgpack_packer_init(packer, out, msgpack_sbuffer_write);
    msgpack_pack_map(packer, 4 + fields);
    put_text_at(packer, "type", type);
    put_text_at(packer, "session", device.forward.session);
    put_int_at(packer, "iteration", device.forward.iteration);
    put_int_at(packer, "attempt", device.forward.attempt);
}

static void finish(struct bus *bus, const char *name, msgpack_sbuffer *out) {
    bus_send(bus, name, device.forward.session, out);
    msgpack_sbuffer_destroy(out);
}

static struct tensor activation(const struct layer *layer, size_t n, const uint8_t *data) {
    return (struct tensor){.dtype = layer->is_signed ? "int8" : "uint8", .axes = 4, .count = n * layer_size(layer), .data = data,
                           .bytes = n * layer_size(layer), .shape = {n, (uint64_t)layer->h, (uint64_t)layer->w, (uint64_t)layer->c}};
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

static void vote3(const uint8_t *const *runs, bool is_signed, size_t size, uint8_t *out) {
    uint8_t turn = is_signed ? 0x80 : 0;
    for (size_t i = 0; i < size; i++) {
        uint8_t a = runs[0][i], b = runs[1][i], c = runs[2][i];
        if (!device.median) {
            out[i] = (uint8_t)((a & b) | (c & (a | b)));
            continue;
        }
        a ^= turn, b ^= turn, c ^= turn;
        uint8_t low = a < b ? a : b, high = a < b ? b : a, middle = high < c ? high : c;
        out[i] = (low > middle ? low : middle) ^ turn;
    }
}

/* What the network sees of an image: mirrored and moved (docs/bus.md, "The view"). */
static uint8_t seen(const struct view *view, const struct set *set, const uint8_t *image, uint64_t place, uint64_t y, uint64_t x, uint64_t c) {
    uint64_t key[2] = {(uint64_t)view->seed, place}, h = view->given ? XXH3_64bits(key, sizeof key) : 0;
    int64_t wide = 2 * view->shift + 1;
    int64_t down = (int64_t)((h >> 1) % ((uint64_t)1 << 31)) % wide - view->shift, right = (int64_t)(h >> 32) % wide - view->shift;
    int64_t row = (int64_t)y - down, column = (int64_t)x - right;
    row = row < 0 ? 0 : row >= (int64_t)set->h ? (int64_t)set->h - 1 : row;
    column = column < 0 ? 0 : column >= (int64_t)set->w ? (int64_t)set->w - 1 : column;
    if (view->flip && h & 1) column = (int64_t)set->w - 1 - column;
    return image[((uint64_t)row * set->w + (uint64_t)column) * set->c + c];
}

static void send_inputs(struct bus *bus, const uint8_t *images, const int64_t *labels) {
    const struct forward *f = &device.forward;
    msgpack_sbuffer out;
    msgpack_packer packer;
    size_t bytes = f->count * f->set->h * f->set->w * f->set->c;
    struct tensor tensors[2] = {
        {.dtype = "uint8", .axes = 4, .shape = {f->count, f->set->h, f->set->w, f->set->c}, .count = bytes, .bytes = bytes, .data = images},
        {.dtype = "int64", .axes = 1, .shape = {f->count}, .count = f->count, .bytes = 8 * f->count, .data = (const uint8_t *)labels}};
    head(&packer, &out, "inputs", 2 + f->view.given);
    put_tensor_at(&packer, "images", &tensors[0]);
    put_tensor_at(&packer, "labels", &tensors[1]);
    if (f->view.given) {
        put_text(&packer, "view");
        msgpack_pack_map(&packer, 3);
        put_int_at(&packer, "seed", f->view.seed);
        put_bool_at(&packer, "flip", f->view.flip);
        put_int_at(&packer, "shift", f->view.shift);
    }
    finish(bus, "edge/inputs", &out);
}

struct executed {
    int index;
    bool protected;
    int64_t count;
    uint8_t *runs[RUNS_MAX];
};

static void send_segment(struct bus *bus, int64_t number, struct executed *layers, unsigned count) {
    msgpack_sbuffer out;
    msgpack_packer packer;
    head(&packer, &out, "replicas", 4);
    put_int_at(&packer, "segment", number);
    put_text_at(&packer, "mode", "training");
    put_text_at(&packer, "vote", device.median ? "median" : "bitwise");
    put_text(&packer, "layers");
    msgpack_pack_array(&packer, count);
    for (unsigned i = 0; i < count; i++) {
        const struct layer *layer = &device.network->layers[layers[i].index];
        msgpack_pack_map(&packer, 4);
        put_int_at(&packer, "index", layers[i].index);
        put_bool_at(&packer, "protected", layers[i].protected);
        put_bool_at(&packer, "direct", device.direct);
        put_text(&packer, "replicas");
        msgpack_pack_array(&packer, (size_t)layers[i].count);
        for (int64_t r = 0; r < layers[i].count; r++) {
            struct tensor tensor = activation(layer, device.forward.count, layers[i].runs[r]);
            put_tensor(&packer, &tensor);
            free(layers[i].runs[r]);
        }
    }
    finish(bus, "edge/replicas", &out);
}

/* Why the pass cannot be, or NULL. `values` are the layers' outputs, the input's before them. */
static const char *pass(struct bus *bus, uint8_t **values, struct executed *segment) {
    struct forward *f = &device.forward;
    double rate = f->reliable ? 0 : f->has_rate ? f->rate : device.rate, start = now_s();
    int64_t seed = f->has_seed ? f->seed : device.seed, number = 0;
    unsigned gathered = 0;
    size_t bytes = 0;
    for (int i = 0; i < device.network->count; i++) {
        const struct layer *layer = &device.network->layers[i];
        const uint8_t *operands[OPERANDS];
        size_t size = f->count * layer_size(layer);
        for (int k = 0; k < layer->operands; k++) operands[k] = values[layer->inputs[k] + 1];
        if (!(values[i + 1] = malloc(size))) return "no memory for a layer's outputs";
        layer_run(device.network, i, operands, f->count, values[i + 1]);
        if (layer->kind != CONV) continue;
        struct executed *to = &segment[gathered++];
        *to = (struct executed){.index = i, .count = f->training && !device.direct ? device.runs : 1};
        for (unsigned p = 0; p < device.protected_count && !f->reliable; p++) to->protected |= device.protected[p] == i;
        if (to->protected && to->count < 3) to->count = 3;
        for (int64_t r = 0; r < to->count; r++) {
            if (!(to->runs[r] = malloc(size))) return "no memory for a layer's executions";
            memcpy(to->runs[r], values[i + 1], size);
            flip(bus, rate, seed, i, r, to->runs[r], size);
        }
        if (to->protected) vote3((const uint8_t *const *)to->runs, layer->is_signed, size, values[i + 1]);
        else memcpy(values[i + 1], to->runs[0], size);
        bytes += size;
        if (f->training && bytes >= SEGMENT_BYTES) {
            send_segment(bus, number, segment, gathered);
            bus_timing(bus, f->session, "forward", f->iteration, number++, now_s() - start);
            memset(segment, 0, gathered * sizeof *segment);
            gathered = 0, bytes = 0, start = now_s();
        }
    }
    if (!f->training || !gathered) return NULL;
    send_segment(bus, number, segment, gathered);
    bus_timing(bus, f->session, "forward", f->iteration, number, now_s() - start);
    memset(segment, 0, gathered * sizeof *segment);
    return NULL;
}

static const char *run(struct bus *bus) {
    struct forward *f = &device.forward;
    const struct network *network = device.network;
    const struct set *set = f->set;
    const struct layer *last = &network->layers[network->count - 1];
    size_t image = set->h * set->w * set->c, memory = 0;
    if ((int64_t)set->h != network->h || (int64_t)set->w != network->w || (int64_t)set->c != network->c) return "the network is for images of another size";
    if (!f->training && (last->h != 1 || last->w != 1)) return "the network's output is no vector";
    for (int i = 0; i < network->count; i++) memory += f->count * layer_size(&network->layers[i]) * (size_t)(1 + device.runs);
    if (memory > MEMORY_MAX || network_macs(network) * (double)f->count > MACS_MAX) return "the pass is larger than this device takes";
    uint8_t *images = malloc(f->count * image), **values = calloc((size_t)network->count + 1, sizeof *values);
    int64_t *labels = malloc(8 * f->count);
    struct executed *segment = calloc((size_t)network->count, sizeof *segment);
    const char *error = images && values && labels && segment && (values[0] = malloc(f->count * image)) ? NULL : "no memory for the images";
    for (size_t i = 0; !error && i < f->count; i++) {
        const uint8_t *from = set->images + f->samples[i] * image;
        memcpy(images + i * image, from, image);
        labels[i] = set->labels[f->samples[i]];
        for (size_t at = 0; at < image; at++) {
            uint64_t c = at % set->c, x = at / set->c % set->w, y = at / set->c / set->w;
            values[0][i * image + at] = network->input_table[c * 256 + seen(&f->view, set, from, i, y, x, c)];
        }
    }
    if (!error && f->training) send_inputs(bus, images, labels);
    if (!error) error = pass(bus, values, segment);
    if (!error && !f->training) {
        msgpack_sbuffer out;
        msgpack_packer packer;
        struct tensor outputs = activation(last, f->count, values[network->count]);
        struct tensor truth = {.dtype = "int64", .axes = 1, .shape = {f->count}, .count = f->count, .bytes = 8 * f->count, .data = (uint8_t *)labels};
        head(&packer, &out, "outputs", 3);
        put_int_at(&packer, "nonce", f->nonce);
        put_tensor_at(&packer, "outputs", &outputs);
        put_tensor_at(&packer, "labels", &truth);
        finish(bus, "up/outputs", &out);
    }
    for (int i = 0; values && i <= network->count; i++) free(values[i]);
    for (int i = 0; segment && i < network->count; i++)
        for (int r = 0; r < RUNS_MAX; r++) free(segment[i].runs[r]);
    free(segment), free(values), free(images), free(labels);
    return error;
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
    if (!f->waits || !device.has_mode || !device.network || f->version != device.version) return;
    if (strcmp(f->session, device.session) || strcmp(f->session, device.mode_session)) return;
    f->waits = false;
    const char *error = f->refused ? f->refused : run(bus);
    if (error) acknowledge(bus, f->session, "forward", f->iteration, error);
}

static const char *read_mode(const msgpack_object *message, const char **refused) {
    static const msgpack_object none = {.type = MSGPACK_OBJECT_MAP};
    const msgpack_object *scheme = get(message, "scheme"), *rates = get(message, "rates"), *known = get(message, "known");
    msgpack_object_array layers = {0};
    if (!scheme) scheme = &none;
    const msgpack_object *codec = get(scheme, "codec"), *port = get(scheme, "ports"), *vote = get(scheme, "vote");
    device.rate = 0, device.seed = 0, device.runs = 3, device.protected_count = 0;
    if (rates && get(rates, "output") && !get_number(rates, "output", 0, 1, &device.rate)) return "rates.output is no share";
    if (get(message, "seed") && !get_int(message, "seed", INT64_MIN, INT64_MAX, &device.seed)) return "seed is no number";
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
    if (!is_text(get(message, "type"), "setmode")) return "type is not setmode";
    if (!get_int(message, "seq", INT64_MIN, INT64_MAX, &seq)) return "seq is no number";
    enter(session);
    device.has_mode = false;
    const char *wrong = read_mode(message, &refused);
    if (wrong) return wrong;
    device.has_mode = !refused;
    strcpy(device.mode_session, session);
    acknowledge(bus, session, "mode", seq, refused);
    start(bus);
    return NULL;
}

static const char *take_model(struct bus *bus, const char *session, const msgpack_object *message) {
    int64_t version;
    struct tensor body;
    char why[256];
    if (!is_text(get(message, "type"), "deploy")) return "type is not deploy";
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
    const msgpack_object *rates = get(message, "rates"), *view = get(message, "view"), *images = get(message, "images");
    if (!is_text(get(message, "type"), "forward")) return "type is not forward";
    if (!get_int(message, "iteration", 0, INT64_MAX, &f.iteration) || !get_int(message, "attempt", 0, INT64_MAX, &f.attempt) ||
        !get_int(message, "version", 1, INT64_MAX, &f.version))
        return "iteration, attempt or version is no number";
    if (get(message, "nonce") && !get_int(message, "nonce", 0, INT64_MAX, &f.nonce)) return "nonce is no number";
    f.training = is_text(get(message, "mode"), "training");
    if (!f.training && !is_text(get(message, "mode"), "inference")) return "mode is unknown";
    f.set = is_text(get(message, "split"), "train") ? &device.train : &device.test;
    if (f.set == &device.test && !is_text(get(message, "split"), "test")) return "split is neither train nor test";
    f.has_seed = !is_absent(get(message, "seed"));
    if (f.has_seed && !get_int(message, "seed", INT64_MIN, INT64_MAX, &f.seed)) return "seed is no number";
    f.has_rate = !is_absent(rates);
    if (f.has_rate && get(rates, "output") && !get_number(rates, "output", 0, 1, &f.rate)) return "rates.output is no share";
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

static const char *take(struct bus *bus, const char *name, const msgpack_object *message) {
    char session[NAME_MAX_BYTES + 1];
    if (!get_text(message, "session", session, sizeof session)) return "session is no text of 64 bytes at most";
    if (strcmp(name, "down/mode") == 0) return take_mode(bus, session, message);
    if (strcmp(name, "edge/model") == 0) return take_model(bus, session, message);
    return take_forward(bus, session, message);
}

int main(int count, char **arguments) {
    static const char *const listens[] = {"down/mode", "down/forward", "edge/model", NULL};
    static const struct service agent = {"agent", listens, take, announce};
    if (count != 4) return fprintf(stderr, "usage: c-agent mqtt[s]://[user@]host:port DEVICE FOLDER\n"), 2;
    if (!read_set(arguments[3], "train", &device.train) || !read_set(arguments[3], "test", &device.test)) return 1;
    return bus_serve(&agent, arguments[1], arguments[2]);
}
