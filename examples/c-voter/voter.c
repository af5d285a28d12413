/* The voter of R2F in C, from docs/bus.md: each edge/replicas is answered with one edge/voted.

   c-voter mqtt://127.0.0.1:1883 edge-0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../c-common/bus.h"

#define MOST 7        /* replicas */
#define LAYERS_MAX 65536

struct layer {
    int64_t index;
    unsigned count;
    struct tensor replicas[MOST], actual, positions, values;
    bool other_actual, protected, direct, has_values, has_positions;
};

static bool alike(const struct tensor *a, const struct tensor *b) {
    return a->dtype == b->dtype && a->axes == b->axes && memcmp(a->shape, b->shape, a->axes * sizeof *a->shape) == 0;
}

static bool is_activation(const struct tensor *a) { return strcmp(a->dtype, "int8") == 0 || strcmp(a->dtype, "uint8") == 0; }

/* A reason to drop the message, or NULL. */
static const char *read_layer(const msgpack_object *object, struct layer *layer) {
    msgpack_object_array replicas;
    memset(layer, 0, sizeof *layer);
    if (!get_int(object, "index", 0, INT32_MAX, &layer->index)) return "a layer has no index";
    if (!get_array(object, "replicas", MOST, &replicas) || replicas.size == 0) return "a layer has no 1 to 7 replicas";
    layer->count = replicas.size;
    for (unsigned i = 0; i < layer->count; i++) {
        if (!read_tensor(&replicas.ptr[i], &layer->replicas[i])) return "a replica is no tensor, or not inline: set R2F_SHM_DIR= for all";
        if (!is_activation(&layer->replicas[i]) || !alike(&layer->replicas[i], &layer->replicas[0])) return "replicas differ in kind";
    }
    layer->protected = is_true(get(object, "protected"));
    layer->direct = is_true(get(object, "direct"));
    layer->other_actual = !is_absent(get(object, "actual"));
    if (layer->other_actual && (!read_tensor(get(object, "actual"), &layer->actual) || !alike(&layer->actual, &layer->replicas[0])))
        return "actual is no tensor like the replicas";
    layer->has_values = !is_absent(get(object, "values"));
    layer->has_positions = !is_absent(get(object, "positions"));
    if (!layer->has_values) return layer->count == 1 && layer->protected ? "a protected layer has one replica" : NULL;
    if (!read_tensor(get(object, "values"), &layer->values) || layer->values.dtype != layer->replicas[0].dtype || layer->values.axes != 1)
        return "values are not the replicas' kind";
    if (!layer->has_positions) return layer->values.count == layer->replicas[0].count ? NULL : "values are not of the whole layer";
    struct tensor *at = &layer->positions;
    if (!read_tensor(get(object, "positions"), at) || strcmp(at->dtype, "int32") || at->axes != 1 || at->count != layer->values.count)
        return "positions are no int32, one for each value";
    return NULL;
}

/* Little-endian, wherever this runs. */
static int64_t position(const struct layer *layer, size_t i) {
    const uint8_t *at = layer->positions.data + 4 * i;
    return (int32_t)((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
}

/* What most of `count` replicas say, odd and 3 or more: of bits, or the median of the integers. */
static void majority(const struct layer *layer, unsigned count, bool median, uint8_t *out) {
    /* The median of int8 is that of uint8 with the sign bit turned. */
    uint8_t turn = median && strcmp(layer->replicas[0].dtype, "int8") == 0 ? 0x80 : 0;
    for (size_t i = 0; i < layer->replicas[0].count; i++) {
        uint8_t sorted[MOST];
        unsigned bits[8] = {0}, made = 0;
        for (unsigned r = 0; r < count; r++) {
            uint8_t value = layer->replicas[r].data[i] ^ turn;
            unsigned place = r;
            for (; median && place > 0 && sorted[place - 1] > value; place--) sorted[place] = sorted[place - 1];
            sorted[place] = value;
            for (unsigned b = 0; b < 8; b++) bits[b] += value >> b & 1;
        }
        for (unsigned b = 0; b < 8; b++) made |= (unsigned)(2 * bits[b] > count) << b;
        out[i] = (uint8_t)((median ? sorted[count / 2] : made) ^ turn);
    }
}

/* The vote of a layer that has one, with the referee's values. A reason to drop the message, or NULL. */
static const char *vote(const struct layer *layer, bool median, uint8_t *out) {
    size_t size = layer->replicas[0].count;
    if (layer->has_values && !layer->has_positions) {
        memcpy(out, layer->values.data, size);
        return NULL;
    }
    int64_t last = -1;
    for (size_t i = 0; layer->has_values && i < layer->positions.count; i++) {
        int64_t at = position(layer, i);
        if (at <= last || at >= (int64_t)size) return "positions do not rise within the layer";
        last = at;
    }
    if (layer->count == 2 && layer->has_values) {
        const uint8_t *a = layer->replicas[0].data, *b = layer->replicas[1].data;
        size_t next = 0;
        for (size_t i = 0; i < size; i++) {
            bool named = next < layer->positions.count && position(layer, next) == (int64_t)i;
            next += named;
            if (a[i] != b[i] && !named) return "two replicas differ where the referee gave no value";
        }
        memcpy(out, a, size);
    } else if (layer->count % 2 == 1 && layer->count > 2) {
        majority(layer, layer->count, median, out);
    } else {
        return "so many replicas cannot be voted on";
    }
    for (size_t i = 0; layer->has_values && i < layer->positions.count; i++) out[position(layer, i)] = layer->values.data[i];
    return NULL;
}

static const char *answer_layer(const struct layer *layer, bool median, msgpack_packer *packer) {
    struct tensor actual = layer->other_actual ? layer->actual : layer->replicas[0], voted = layer->replicas[0];
    bool votes = layer->count > 1 || layer->has_values;
    size_t size = voted.count;
    uint8_t *out = malloc(2 * size + 1);
    if (!out) return "no memory for the vote";
    const char *wrong = votes ? vote(layer, median, out) : NULL;
    if (!wrong && layer->protected) {
        if (layer->count < 3) wrong = "a protected layer has fewer than three replicas";
        else majority(layer, 3, median, out + size), actual = voted, actual.data = out + size;
    }
    if (!wrong) {
        voted.data = out;
        msgpack_pack_map(packer, 3 + votes);
        put(packer, FIELDS(INT("index", layer->index), TENSOR("actual", &actual), BOOL("direct", layer->direct)));
        if (votes) put(packer, FIELDS(TENSOR("vote", &voted)));
    }
    free(out);
    return wrong;
}

static const char *take(struct bus *bus, const char *session, const msgpack_object *message) {
    static const char *const numbers[] = {"iteration", "attempt", "segment"};
    char mode[16];
    int64_t same[3];
    msgpack_object_array layers;
    double start = now_s();
    for (int i = 0; i < 3; i++)
        if (!get_int(message, numbers[i], INT64_MIN, INT64_MAX, &same[i])) return "iteration, attempt or segment is no number";
    if (!get_text(message, "mode", mode, sizeof mode) || (strcmp(mode, "training") && strcmp(mode, "inference"))) return "mode is unknown";
    bool median = is_text(get(message, "vote"), "median");
    if (!median && !is_text(get(message, "vote"), "bitwise")) return "vote is neither median nor bitwise";
    if (!get_array(message, "layers", LAYERS_MAX, &layers)) return "layers is no array";

    struct draft answer;
    begin(&answer, "voted", session, 5);
    for (int i = 0; i < 3; i++) put(&answer.packer, FIELDS(INT(numbers[i], same[i])));
    put(&answer.packer, FIELDS(TEXT("mode", mode)));
    put_text(&answer.packer, "layers");
    msgpack_pack_array(&answer.packer, layers.size);
    const char *wrong = NULL;
    for (uint32_t i = 0; i < layers.size && !wrong; i++) {
        struct layer layer;
        wrong = read_layer(&layers.ptr[i], &layer);
        if (!wrong) wrong = answer_layer(&layer, median, &answer.packer);
    }
    if (wrong) return drop(&answer), wrong;
    bus_send(bus, "edge/voted", session, &answer);
    bus_timing(bus, session, "tmr", same[0], same[2], now_s() - start);
    return NULL;
}

static void connected(struct bus *bus) { bus_announce(bus, true, 0, NULL); }

int main(int count, char **arguments) {
    static const struct listens listens[] = {{"edge/replicas", "replicas", take}, {0}};
    static const struct service voter = {"voter", listens, connected};
    if (count != 3) return fprintf(stderr, "usage: c-voter mqtt[s]://[user@]host:port DEVICE\n"), 2;
    return bus_serve(&voter, arguments[1], arguments[2]);
}
