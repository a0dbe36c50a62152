/* Included once per instruction set by dot_shuffle.c, which defines the vector operations. No include guard. */

/* One vector of sources[j], times the coefficient of each row, added to that row's sum. */
TARGET ALWAYS_INLINE void BODY(add_products)(const unsigned rows, const uint8_t *entries, VECTOR source, VECTOR *sums)
{
    VECTOR low = LOW_NIBBLES(source), high = HIGH_NIBBLES(source);
#pragma GCC unroll 4
    for (unsigned row = 0; row < rows; row++) {
        VECTOR product = XOR(LOOK_UP(TABLE(entries + 32 * row), low), LOOK_UP(TABLE(entries + 32 * row + 16), high));
        sums[row] = XOR(sums[row], product);
    }
}

TARGET ALWAYS_INLINE void BODY(rows)(const unsigned rows, size_t source_count, const uint8_t *tables,
                                     const uint8_t *const *sources, uint8_t *const *targets, size_t at, size_t size)
{
    VECTOR sums[4];
    for (; size >= sizeof(VECTOR); at += sizeof(VECTOR), size -= sizeof(VECTOR)) {
#pragma GCC unroll 4
        for (unsigned row = 0; row < rows; row++)
            sums[row] = ZERO();
        for (size_t j = 0; j < source_count; j++)
            BODY(add_products)(rows, tables + 32 * rows * j, LOAD(sources[j] + at), sums);
#pragma GCC unroll 4
        for (unsigned row = 0; row < rows; row++)
            STORE(targets[row] + at, sums[row]);
    }
    if (size == 0)
        return;
    uint8_t scratch[sizeof(VECTOR)] = {0};   /* the last part of a vector, so that nothing outside is touched */
#pragma GCC unroll 4
    for (unsigned row = 0; row < rows; row++)
        sums[row] = ZERO();
    for (size_t j = 0; j < source_count; j++) {
        memcpy(scratch, sources[j] + at, size);
        BODY(add_products)(rows, tables + 32 * rows * j, LOAD(scratch), sums);
    }
#pragma GCC unroll 4
    for (unsigned row = 0; row < rows; row++) {
        STORE(scratch, sums[row]);
        memcpy(targets[row] + at, scratch, size);
    }
}

TARGET void BODY(dot)(unsigned rows, size_t source_count, const uint8_t *tables, const uint8_t *const *sources,
                      uint8_t *const *targets, size_t begin, size_t size)
{
    switch (rows) {
    case 1: BODY(rows)(1, source_count, tables, sources, targets, begin, size); break;
    case 2: BODY(rows)(2, source_count, tables, sources, targets, begin, size); break;
    case 3: BODY(rows)(3, source_count, tables, sources, targets, begin, size); break;
    default: BODY(rows)(4, source_count, tables, sources, targets, begin, size); break;
    }
}

#undef BODY
#undef TARGET
#undef VECTOR
#undef LOAD
#undef STORE
#undef TABLE
#undef LOW_NIBBLES
#undef HIGH_NIBBLES
#undef LOOK_UP
#undef XOR
#undef ZERO
