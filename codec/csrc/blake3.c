/* BLAKE3 (O'Connor, Aumasson, Neves and Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", 2020), plain hash.
 *
 * Chunks of 1 KiB are the leaves of a binary tree, and all are hashed alike; so a vector register holds one word of as
 * many of them as it has lanes, and they may belong to different shards. One body serves all widths; the parents of a
 * level are hashed in the same way.
 */

#include "kernel.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK 64
#define LANES_MAX 16

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

static const uint32_t initial[8] = {
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
};

/* Which word of the message each round takes where: the permutation, applied again and again. */
#define ROUNDS 7
static const uint8_t schedule[ROUNDS][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1}, {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4}, {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

/* Words are little-endian. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define HOST_WORD(word) __builtin_bswap32(word)
#else
#define HOST_WORD(word) (word)
#endif

#define BODY(name) name##_scalar
#define TARGET
#define LANES 1
#define VECTOR uint32_t
#include "blake3_body.h"

#ifdef __GNUC__
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VECTOR){__VA_ARGS__})
#endif
typedef uint32_t lanes_4 __attribute__((vector_size(16)));
typedef uint32_t lanes_8 __attribute__((vector_size(32)));
typedef uint32_t lanes_16 __attribute__((vector_size(64)));
#define LOW_4(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define HIGH_4(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define LOW_8(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH_8(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define LOW_16(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH_16(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#endif

#ifdef KERNEL_X86
#define BODY(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define LANES 16
#define VECTOR lanes_16
#define LOW LOW_16
#define HIGH HIGH_16
#include "blake3_body.h"

#define BODY(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define LANES 8
#define VECTOR lanes_8
#define LOW LOW_8
#define HIGH HIGH_8
#include "blake3_body.h"

#define BODY(name) name##_ssse3
#define TARGET __attribute__((target("ssse3")))
#define LANES 4
#define VECTOR lanes_4
#define LOW LOW_4
#define HIGH HIGH_4
#include "blake3_body.h"
#endif

#ifdef KERNEL_NEON
#define BODY(name) name##_neon
#define TARGET
#define LANES 4
#define VECTOR lanes_4
#define LOW LOW_4
#define HIGH HIGH_4
#include "blake3_body.h"
#endif

/* The nodes that wait to be hashed together. */
typedef struct {
    const hash_lanes *lanes;
    node_shape shape;
    size_t count;
    const uint8_t *inputs[LANES_MAX];
    uint64_t counters[LANES_MAX];
    uint32_t *outputs[LANES_MAX];
} batch;

static void batch_flush(batch *self)
{
    const hash_lanes *lanes = self->count > 1 ? self->lanes : &hash_scalar;
    size_t step = lanes->width;
    for (size_t i = 0; i < self->count; i += step) {
        size_t used = self->count - i < step ? self->count - i : step;
        lanes->nodes(self->inputs + i, self->counters + i, used, &self->shape, self->outputs + i);
    }
    self->count = 0;
}

static void batch_add(batch *self, const uint8_t *input, uint64_t counter, uint32_t *output)
{
    self->inputs[self->count] = input;
    self->counters[self->count] = counter;
    self->outputs[self->count++] = output;
    if (self->count == self->lanes->width)
        batch_flush(self);
}

static size_t chunks_of(size_t size)
{
    return size == 0 ? 1 : (size + HASH_CHUNK_BYTES - 1) / HASH_CHUNK_BYTES;
}

int hashing_init(hashing *self, const hash_lanes *lanes, size_t shard_count, size_t size)
{
    *self = (hashing){.lanes = lanes, .shard_count = shard_count, .size = size, .chunks = chunks_of(size)};
    self->values = malloc(shard_count * self->chunks * HASH_WORDS * sizeof(uint32_t) + 1);
    return self->values == NULL ? -1 : 0;
}

void hashing_free(hashing *self)
{
    free(self->values);
    self->values = NULL;
}

static uint32_t *value_of(const hashing *self, size_t shard, size_t node)
{
    return self->values + (shard * self->chunks + node) * HASH_WORDS;
}

void hashing_advance(hashing *self, const uint8_t *const *shards, size_t end)
{
    size_t whole = end / HASH_CHUNK_BYTES;
    if (self->chunks == 1)
        return;   /* it is the root, and comes in hashing_end */
    batch waiting = {.lanes = self->lanes, .shape = {HASH_CHUNK_BYTES, CHUNK_START, CHUNK_END, 0}};
    for (size_t i = 0; i < self->shard_count; i++)
        for (size_t chunk = self->chunks_done; chunk < whole; chunk++)
            batch_add(&waiting, shards[i] + chunk * HASH_CHUNK_BYTES, chunk, value_of(self, i, chunk));
    batch_flush(&waiting);
    if (whole > self->chunks_done)
        self->chunks_done = whole;
}

/* The values of one level to those of the next: each two become one, and one that is left over rises as it is. */
static size_t reduce(hashing *self, size_t count)
{
    size_t pairs = count / 2;
    batch waiting = {.lanes = self->lanes, .shape = {BLOCK, 0, count == 2 ? ROOT : 0, PARENT}};
    for (size_t i = 0; i < self->shard_count; i++)
        for (size_t pair = 0; pair < pairs; pair++)
            batch_add(&waiting, (const uint8_t *)value_of(self, i, 2 * pair), 0, value_of(self, i, pair));
    batch_flush(&waiting);
    if (count % 2 != 0)
        for (size_t i = 0; i < self->shard_count; i++)
            memmove(value_of(self, i, pairs), value_of(self, i, count - 1), HASH_WORDS * sizeof(uint32_t));
    return count - pairs;
}

void hashing_end(hashing *self, const uint8_t *const *shards, uint8_t *hashes)
{
    hashing_advance(self, shards, self->size);
    if (self->chunks_done < self->chunks) {
        size_t last = self->chunks - 1, begin = last * HASH_CHUNK_BYTES;
        uint32_t end_flags = CHUNK_END | (last == 0 ? ROOT : 0);
        batch waiting = {.lanes = self->lanes, .shape = {self->size - begin, CHUNK_START, end_flags, 0}};
        for (size_t i = 0; i < self->shard_count; i++)
            batch_add(&waiting, shards[i] + begin, last, value_of(self, i, last));
        batch_flush(&waiting);
    }
    for (size_t count = self->chunks; count > 1;)
        count = reduce(self, count);
    for (size_t i = 0; i < self->shard_count; i++)
        memcpy(hashes + i * HASH_BYTES, value_of(self, i, 0), HASH_BYTES);
}
