#include "network.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensors are little-endian, and this program reads them as they are"
#endif

#define HEADER_MAX ((uint64_t)1 << 24)
#define EDGE_MAX ((int64_t)1 << 20)
#define SIZE_MAX_OF_LAYER ((int64_t)1 << 24)

struct file {
    const uint8_t *data;
    size_t size;
    const cJSON *tensors;
    const char *why; /* what is wrong first */
};

static void wrong(struct file *file, const char *why) {
    if (!file->why) file->why = why;
}

static const cJSON *at(const cJSON *of, const char *key) { return cJSON_GetObjectItemCaseSensitive(of, key); }

/* The bytes of a tensor that has this dtype and so many elements; NULL where it has not. Of a layer, or with -1 of the network. */
static const uint8_t *tensor(struct file *file, int layer, const char *name, const char *dtype, int64_t count) {
    char whole[64];
    if (layer < 0) snprintf(whole, sizeof whole, "%s", name);
    else snprintf(whole, sizeof whole, "%d.%s", layer, name);
    const cJSON *entry = at(file->tensors, whole), *offsets = at(entry, "data_offsets");
    const char *found = cJSON_GetStringValue(at(entry, "dtype"));
    double from = cJSON_GetNumberValue(cJSON_GetArrayItem(offsets, 0)), to = cJSON_GetNumberValue(cJSON_GetArrayItem(offsets, 1));
    double item = strcmp(dtype + 1, "8") ? 4 : 1;
    if (found && strcmp(found, dtype) == 0 && from >= 0 && from <= to && to <= (double)file->size && from == floor(from) && to - from == (double)count * item)
        return file->data + (size_t)from;
    wrong(file, "a tensor is missing, or has another dtype or size");
    return NULL;
}

/* Element i of four bytes each, which may lie anywhere in the file. */
static void word(const uint8_t *data, int64_t i, void *value) { memcpy(value, data + 4 * i, 4); }

static int64_t whole(struct file *file, const cJSON *value, int64_t least, int64_t most) {
    double number = cJSON_GetNumberValue(value);
    if (number >= (double)least && number <= (double)most && number == floor(number)) return (int64_t)number;
    wrong(file, "a number of a layer is missing or out of its bounds");
    return least;
}

static void several(struct file *file, const cJSON *of, const char *name, int count, int64_t least, int64_t *out) {
    const cJSON *values = at(of, name);
    for (int i = 0; i < count; i++) out[i] = whole(file, cJSON_GetArrayItem(values, i), least, EDGE_MAX);
}

static float factor(struct file *file, const cJSON *value) {
    if (!cJSON_IsNumber(value)) wrong(file, "a multiplier is missing");
    return (float)cJSON_GetNumberValue(value); /* written as the double of that float32 */
}

size_t layer_size(const struct layer *layer) { return (size_t)(layer->h * layer->w * layer->c); }

static struct layer operand(const struct network *network, int index) {
    if (index >= 0) return network->layers[index];
    return (struct layer){.h = network->h, .w = network->w, .c = network->c, .is_signed = true};
}

static void read_conv(struct file *file, const cJSON *plain, int index, struct layer *layer, const struct layer *from) {
    char name[32];
    int64_t shape[4] = {0};
    snprintf(name, sizeof name, "%d.weight", index);
    several(file, at(file->tensors, name), "shape", 4, 1, shape);
    layer->groups = whole(file, at(plain, "groups"), 1, EDGE_MAX);
    layer->per_group = shape[1], layer->kernel[0] = shape[2], layer->kernel[1] = shape[3];
    double weights = (double)shape[0] * (double)shape[1] * (double)shape[2] * (double)shape[3];
    if (shape[0] != layer->c || layer->c % layer->groups || shape[1] * layer->groups != from->c || weights > (double)SIZE_MAX_OF_LAYER)
        wrong(file, "a convolution's weights do not fit its shape");
    if (file->why) return;
    layer->weight = tensor(file, index, "weight", "I8", (int64_t)weights);
    layer->bias = tensor(file, index, "bias", "I32", layer->c);
    layer->highs = tensor(file, index, "high", "I32", layer->c);
    layer->multiplier = tensor(file, index, "multiplier", "F32", layer->c);
}

static void read_layer(struct file *file, struct network *network, const cJSON *plain, int index) {
    static const char *const types[] = {"Conv", "Add", "MaxPool", "MeanPool", "Table", "Flatten"}; /* as enum kind */
    struct layer *layer = &network->layers[index];
    const cJSON *inputs = at(plain, "inputs");
    const char *type = cJSON_GetStringValue(at(plain, "type"));
    int64_t shape[3];
    int kind = 0;
    while (kind <= FLATTEN && (!type || strcmp(type, types[kind]))) kind++;
    if (kind > FLATTEN) wrong(file, "a layer is of a type that this program does not have: it has Conv, Add, MaxPool, MeanPool, Table, Flatten");
    several(file, plain, "shape", 3, 1, shape);
    *layer = (struct layer){.kind = (enum kind)kind, .h = shape[0], .w = shape[1], .c = shape[2], .is_signed = cJSON_IsTrue(at(plain, "signed")),
                            .operands = cJSON_GetArraySize(inputs), .dilation = {1, 1}};
    if (layer->operands < 1 || layer->operands > (kind == ADD ? OPERANDS : 1) || (double)layer->h * (double)layer->w * (double)layer->c > (double)SIZE_MAX_OF_LAYER)
        wrong(file, "a layer is larger, or has other operands, than this program takes");
    for (int i = 0; !file->why && i < layer->operands; i++) layer->inputs[i] = (int)whole(file, cJSON_GetArrayItem(inputs, i), -1, index - 1);
    if (file->why) return;
    struct layer from = operand(network, layer->inputs[0]);
    bool pool = kind == MAX_POOL || kind == MEAN_POOL;
    if (kind == CONV || pool) {
        several(file, plain, "stride", 2, 1, layer->stride);
        several(file, plain, "padding", 2, 0, layer->padding);
    }
    if (kind == CONV || kind == MAX_POOL) several(file, plain, "dilation", 2, 1, layer->dilation);
    if (kind == CONV || kind == ADD || kind == MEAN_POOL) layer->low = whole(file, at(plain, "low"), -128, 255);
    if (kind == ADD || kind == MEAN_POOL) layer->high = whole(file, at(plain, "high"), -128, 255);
    if (pool) several(file, plain, "kernel", 2, 1, layer->kernel);
    if (pool && from.c != layer->c) wrong(file, "a pool changes the channels");
    if ((kind == MAX_POOL || kind == FLATTEN) && from.is_signed != layer->is_signed) wrong(file, "a layer has another sign than its operand");
    if ((kind == TABLE || kind == FLATTEN) && layer_size(&from) != layer_size(layer)) wrong(file, "a table or flatten changes the size");
    if (kind == FLATTEN && (layer->h != 1 || layer->w != 1)) wrong(file, "a flatten's output is no vector");
    if (kind == CONV) read_conv(file, plain, index, layer, &from);
    if (kind == MEAN_POOL) layer->multipliers[0] = factor(file, at(plain, "multiplier"));
    if (kind == TABLE) layer->table = tensor(file, index, "table", layer->is_signed ? "I8" : "U8", 256);
    for (int i = 0; kind == ADD && i < layer->operands; i++) {
        struct layer one = operand(network, layer->inputs[i]);
        if (one.h != layer->h || one.w != layer->w || one.c != layer->c) wrong(file, "an add's operands have other shapes");
        layer->multipliers[i] = factor(file, cJSON_GetArrayItem(at(plain, "multipliers"), i));
    }
    double window = kind == CONV ? (double)layer->per_group : 1;
    if (kind == CONV || pool) window *= (double)layer->kernel[0] * (double)layer->kernel[1];
    network->macs += window * (double)layer_size(layer);
}

struct network *network_read(const uint8_t *body, size_t size, char *why, size_t room) {
    struct network *network = calloc(1, sizeof *network);
    struct file file = {0};
    cJSON *header = NULL, *graph = NULL;
    uint64_t length = 0;
    if (size >= 8) memcpy(&length, body, 8);
    if (!network || !(network->body = malloc(size + 1))) wrong(&file, "no memory for it");
    else if (size < 8 || length > HEADER_MAX || length > size - 8) wrong(&file, "no safetensors file: its header is cut off");
    if (!file.why) {
        memcpy(network->body, body, size);
        file.data = network->body + 8 + length;
        file.size = size - 8 - length;
        header = cJSON_ParseWithLength((const char *)network->body + 8, length);
        const char *text = cJSON_GetStringValue(at(at(header, "__metadata__"), "r2f"));
        graph = text ? cJSON_Parse(text) : NULL;
        const char *format = cJSON_GetStringValue(at(graph, "format"));
        const cJSON *layers = at(graph, "layers"), *plain;
        file.tensors = header;
        if (!format || strcmp(format, "r2f-int8-network/2")) wrong(&file, "no network: its format is not r2f-int8-network/2");
        int64_t shape[3];
        several(&file, graph, "input_shape", 3, 1, shape);
        network->h = shape[0], network->w = shape[1], network->c = shape[2];
        if (!file.why && (double)network->h * (double)network->w * (double)network->c > (double)SIZE_MAX_OF_LAYER) wrong(&file, "its input is too large");
        if (!file.why) network->input_table = tensor(&file, -1, "input_table", "I8", network->c * 256);
        if (cJSON_GetArraySize(layers) < 1 || cJSON_GetArraySize(layers) > LAYERS_MAX) wrong(&file, "it has not 1 to 1024 layers");
        cJSON_ArrayForEach(plain, layers) if (!file.why) read_layer(&file, network, plain, network->count++);
    }
    cJSON_Delete(graph);
    cJSON_Delete(header);
    if (!file.why) return network;
    snprintf(why, room, "network: %s (layer %d)", file.why, network && network->count ? network->count - 1 : 0);
    network_free(network);
    return NULL;
}

void network_free(struct network *network) {
    if (network) free(network->body);
    free(network);
}

static int64_t value(const uint8_t *x, bool is_signed, size_t i) { return is_signed ? (int8_t)x[i] : x[i]; }

/* clamp(rint(float32(sum) * multiplier)): one float32 product, half to even; no contraction (-ffp-contract=off). */
static int64_t scaled(int64_t sum, float multiplier, int64_t low, int64_t high) {
    float y = rintf((float)sum * multiplier);
    if (!(y > (float)low)) return low;
    return y < (float)high ? (int64_t)y : high;
}

static void run_window(const struct layer *l, const struct layer *from, const uint8_t *x, uint8_t *out) {
    for (int64_t oy = 0; oy < l->h; oy++)
        for (int64_t ox = 0; ox < l->w; ox++)
            for (int64_t o = 0; o < l->c; o++) {
                int64_t sum = 0, most = from->is_signed ? -128 : 0, first = l->kind == CONV ? o / (l->c / l->groups) * l->per_group : o;
                int64_t channels = l->kind == CONV ? l->per_group : 1;
                for (int64_t r = 0; r < l->kernel[0]; r++)
                    for (int64_t s = 0; s < l->kernel[1]; s++) {
                        int64_t y = oy * l->stride[0] - l->padding[0] + r * l->dilation[0];
                        int64_t x_ = ox * l->stride[1] - l->padding[1] + s * l->dilation[1];
                        if (y < 0 || y >= from->h || x_ < 0 || x_ >= from->w) continue; /* zeros; of a max pool, nothing */
                        for (int64_t i = 0; i < channels; i++) {
                            int64_t v = value(x, from->is_signed, (size_t)((y * from->w + x_) * from->c + first + i));
                            if (l->kind == CONV)
                                v *= (int8_t)l->weight[((o * channels + i) * l->kernel[0] + r) * l->kernel[1] + s];
                            sum += v;
                            if (v > most) most = v;
                        }
                    }
                if (l->kind == CONV) {
                    int32_t bias, high;
                    float multiplier;
                    word(l->bias, o, &bias), word(l->highs, o, &high), word(l->multiplier, o, &multiplier);
                    most = scaled(sum + bias, multiplier, l->low, high);
                } else if (l->kind == MEAN_POOL) most = scaled(sum, l->multipliers[0], l->low, l->high);
                out[(oy * l->w + ox) * l->c + o] = (uint8_t)most;
            }
}

void layer_run(const struct network *network, int index, const uint8_t *const *operands, size_t n, uint8_t *out) {
    const struct layer *l = &network->layers[index];
    const struct layer from = operand(network, l->inputs[0]);
    size_t size = layer_size(l), before = layer_size(&from);
    for (size_t image = 0; image < n; image++) {
        const uint8_t *x = operands[0] + image * before;
        uint8_t *y = out + image * size;
        switch (l->kind) {
        case CONV:
        case MAX_POOL:
        case MEAN_POOL:
            run_window(l, &from, x, y);
            break;
        case ADD:
            for (size_t i = 0; i < size; i++) {
                int64_t sum = 0;
                for (int k = 0; k < l->operands; k++) {
                    bool is_signed = operand(network, l->inputs[k]).is_signed;
                    sum += scaled(value(operands[k] + image * size, is_signed, i), l->multipliers[k], -(1 << 30), 1 << 30);
                }
                y[i] = (uint8_t)(sum < l->low ? l->low : sum > l->high ? l->high : sum);
            }
            break;
        case TABLE:
            for (size_t i = 0; i < size; i++) y[i] = l->table[value(x, from.is_signed, i) + (from.is_signed ? 128 : 0)];
            break;
        case FLATTEN: /* (H, W, C) to C slowest */
            for (int64_t i = 0; i < (int64_t)size; i++) y[i % from.c * (from.h * from.w) + i / from.c] = x[i];
            break;
        }
    }
}
