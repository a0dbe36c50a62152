/* GF(2^8) and the interpolation matrices of the code. */

#include "kernel.h"

#define POLYNOMIAL 0x11D
#define GENERATOR_ORDER 255

uint8_t gf_product[256][256];

static uint8_t exponential[2 * GENERATOR_ORDER];   /* powers of the generator 2, twice over */
static uint8_t logarithm[256];

void gf_init(void)
{
    unsigned value = 1;
    for (unsigned power = 0; power < GENERATOR_ORDER; power++) {
        exponential[power] = exponential[power + GENERATOR_ORDER] = (uint8_t)value;
        logarithm[value] = (uint8_t)power;
        value <<= 1;
        if (value & 0x100)
            value ^= POLYNOMIAL;
    }
    for (unsigned a = 1; a < 256; a++)
        for (unsigned b = 1; b < 256; b++)
            gf_product[a][b] = exponential[logarithm[a] + logarithm[b]];
}

/* The point of a shard: 0 for shard 0, then the powers of the generator. */
static uint8_t point(uint8_t shard)
{
    return shard == 0 ? 0 : exponential[shard - 1];
}

static uint8_t inverse(uint8_t value)
{
    return exponential[GENERATOR_ORDER - logarithm[value]];
}

/* Lagrange's basis at the target's point: prod(x - x_i) / prod(x_j - x_i) over every source i other than j. In
 * this field subtraction is xor. `weights[j]` is the inverse of the denominator of source j. */
static void interpolation_row(const uint8_t *sources, size_t source_count, const uint8_t *weights, uint8_t target,
                              uint8_t *row)
{
    uint8_t numerator = 1;
    for (size_t j = 0; j < source_count; j++) {
        if (sources[j] == target) {   /* the target is itself a source: a plain copy */
            for (size_t i = 0; i < source_count; i++)
                row[i] = i == j;
            return;
        }
        numerator = gf_product[numerator][point(target) ^ point(sources[j])];
    }
    for (size_t j = 0; j < source_count; j++)
        row[j] = gf_product[gf_product[numerator][inverse(point(target) ^ point(sources[j]))]][weights[j]];
}

void gf_interpolation_matrix(const uint8_t *sources, size_t source_count, const uint8_t *targets,
                             size_t target_count, uint8_t *coefficients)
{
    uint8_t weights[SHARDS_MAX];
    for (size_t j = 0; j < source_count; j++) {
        uint8_t denominator = 1;
        for (size_t i = 0; i < source_count; i++)
            if (i != j)
                denominator = gf_product[denominator][point(sources[j]) ^ point(sources[i])];
        weights[j] = inverse(denominator);
    }
    for (size_t row = 0; row < target_count; row++)
        interpolation_row(sources, source_count, weights, targets[row], coefficients + row * source_count);
}
