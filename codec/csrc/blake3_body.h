/* Included once per width by blake3.c, which names the vector type and its operations. No include guard. */

TARGET ALWAYS_INLINE VECTOR BODY(rotated)(VECTOR value, const unsigned bits)
{
    return value >> bits | value << (32 - bits);
}

/* The quarter round. */
TARGET ALWAYS_INLINE void BODY(mix)(VECTOR *a, VECTOR *b, VECTOR *c, VECTOR *d, VECTOR first, VECTOR second)
{
    *a = *a + *b + first;
    *d = BODY(rotated)(*d ^ *a, 16);
    *c = *c + *d;
    *b = BODY(rotated)(*b ^ *c, 12);
    *a = *a + *b + second;
    *d = BODY(rotated)(*d ^ *a, 8);
    *c = *c + *d;
    *b = BODY(rotated)(*b ^ *c, 7);
}

/* The 16 words of one block of every lane: word i of lane l becomes words[i][l]. */
TARGET ALWAYS_INLINE void BODY(load)(const uint8_t *const *blocks, VECTOR *words)
{
    for (unsigned part = 0; part < 16 / LANES; part++) {
        VECTOR rows[2][LANES];
        for (unsigned lane = 0; lane < LANES; lane++)
            memcpy(&rows[0][lane], blocks[lane] + part * sizeof(VECTOR), sizeof(VECTOR));
        unsigned now = 0;
#if LANES > 1
        /* Riffling the rows log2(LANES) times transposes them. */
        for (unsigned width = 1; width < LANES; width *= 2, now ^= 1)
            for (unsigned i = 0; i < LANES / 2; i++) {
                rows[now ^ 1][2 * i] = LOW(rows[now][i], rows[now][i + LANES / 2]);
                rows[now ^ 1][2 * i + 1] = HIGH(rows[now][i], rows[now][i + LANES / 2]);
            }
#endif
        for (unsigned i = 0; i < LANES; i++)
            words[part * LANES + i] = HOST_WORD(rows[now][i]);
    }
}

TARGET ALWAYS_INLINE void BODY(compress)(VECTOR *state, const VECTOR *words, VECTOR low, VECTOR high, uint32_t size,
                                         uint32_t flags)
{
    VECTOR zero = low ^ low, v[16];
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++)
        v[i] = state[i];
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; i++)
        v[8 + i] = zero + initial[i];
    v[12] = low;
    v[13] = high;
    v[14] = zero + size;
    v[15] = zero + flags;
#pragma GCC unroll 7
    for (unsigned round = 0; round < ROUNDS; round++) {
        const uint8_t *order = schedule[round];
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++)
            BODY(mix)(&v[i], &v[4 + i], &v[8 + i], &v[12 + i], words[order[2 * i]], words[order[2 * i + 1]]);
#pragma GCC unroll 4
        for (unsigned i = 0; i < 4; i++)
            BODY(mix)(&v[i], &v[4 + (i + 1) % 4], &v[8 + (i + 2) % 4], &v[12 + (i + 3) % 4],
                      words[order[8 + 2 * i]], words[order[9 + 2 * i]]);
    }
#pragma GCC unroll 8
    for (unsigned i = 0; i < 8; i++)
        state[i] = v[i] ^ v[8 + i];
}

TARGET static void BODY(nodes)(const uint8_t *const *inputs, const uint64_t *counters, size_t used,
                               const node_shape *shape, uint32_t *const *outputs)
{
    uint32_t lane_words[LANES];
    uint8_t padded[LANES][BLOCK];
    const uint8_t *blocks[LANES];
    VECTOR state[8], words[16], low, high, zero = {0};
    for (unsigned lane = 0; lane < LANES; lane++)
        lane_words[lane] = (uint32_t)counters[lane < used ? lane : 0];
    memcpy(&low, lane_words, sizeof low);
    for (unsigned lane = 0; lane < LANES; lane++)
        lane_words[lane] = (uint32_t)(counters[lane < used ? lane : 0] >> 32);
    memcpy(&high, lane_words, sizeof high);
    for (unsigned i = 0; i < 8; i++)
        state[i] = zero + initial[i];
    size_t at = 0;
    do {
        size_t left = shape->size - at, size = left < BLOCK ? left : BLOCK;
        for (unsigned lane = 0; lane < LANES; lane++) {
            blocks[lane] = inputs[lane < used ? lane : 0] + at;
            if (size < BLOCK) {
                memset(padded[lane], 0, BLOCK);
                memcpy(padded[lane], blocks[lane], size);
                blocks[lane] = padded[lane];
            }
        }
        uint32_t flags = shape->all | (at == 0 ? shape->first : 0) | (left <= BLOCK ? shape->last : 0);
        BODY(load)(blocks, words);
        BODY(compress)(state, words, low, high, (uint32_t)size, flags);
        at += BLOCK;
    } while (at < shape->size);
    for (unsigned i = 0; i < 8; i++) {
        state[i] = HOST_WORD(state[i]);
        memcpy(lane_words, &state[i], sizeof lane_words);
        for (unsigned lane = 0; lane < used; lane++)
            outputs[lane][i] = lane_words[lane];
    }
}

const hash_lanes BODY(hash) = {LANES, BODY(nodes)};

#undef BODY
#undef TARGET
#undef LANES
#undef VECTOR
#undef LOW
#undef HIGH
