/* Portable tier: one product table row per coefficient. It also finishes what is shorter than a vector. */

#include "kernel.h"

#include <string.h>

void prepare_plain(uint8_t coefficient, uint8_t *entry)
{
    *entry = coefficient;
}

/* Products of every low nibble, then of every high nibble: the table layout of the byte-shuffle tiers. */
void prepare_nibbles(uint8_t coefficient, uint8_t *entry)
{
    for (unsigned nibble = 0; nibble < 16; nibble++) {
        entry[nibble] = gf_product[coefficient][nibble];
        entry[16 + nibble] = gf_product[coefficient][nibble << 4];
    }
}

void dot_scalar(unsigned rows, size_t source_count, const uint8_t *tables, const uint8_t *const *sources,
                uint8_t *const *targets, size_t begin, size_t size)
{
    for (unsigned row = 0; row < rows; row++) {
        uint8_t *target = targets[row] + begin;
        memset(target, 0, size);
        for (size_t j = 0; j < source_count; j++) {
            const uint8_t *product = gf_product[tables[j * rows + row]];
            const uint8_t *source = sources[j] + begin;
            for (size_t i = 0; i < size; i++)
                target[i] ^= product[source[i]];
        }
    }
}
