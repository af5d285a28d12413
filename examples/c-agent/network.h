/* R2F's stored network (docs/bus.md, "The network"): read, checked, run. */
#ifndef NETWORK_H
#define NETWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OPERANDS 4
#define LAYERS_MAX 1024

enum kind { CONV, ADD, MAX_POOL, MEAN_POOL, TABLE, FLATTEN };

struct layer {
    enum kind kind;
    int inputs[OPERANDS], operands; /* index of a layer, -1 for the network's input */
    int64_t h, w, c;                /* of the output */
    bool is_signed;
    int64_t low, high;
    int64_t stride[2], padding[2], dilation[2], kernel[2], groups;
    int64_t per_group; /* input channels of a group */
    float multipliers[OPERANDS];
    const uint8_t *weight, *table;
    const uint8_t *bias, *highs, *multiplier; /* of a Conv, four bytes a channel: int32, int32, float32 */
};

struct network {
    uint8_t *body;
    int64_t h, w, c;
    const uint8_t *input_table; /* (C, 256) int8 */
    double macs; /* of an image */
    int count;
    struct layer layers[LAYERS_MAX];
};

/* NULL, and why, where the bytes are no network that this program can run. */
struct network *network_read(const uint8_t *body, size_t size, char *why, size_t room);
void network_free(struct network *network);
size_t layer_size(const struct layer *layer); /* elements of an image's output */
/* Fault-free output of layer `index` on its operands' values, `n` images each. */
void layer_run(const struct network *network, int index, const uint8_t *const *operands, size_t n, uint8_t *out);

#endif
