/* Products with a matrix whose entries are -1, 0 and +1, as sums and differences of gathered rows.
 *
 * out[lane, o] = base[lane, o] + scale * (sum over plus[o] of x[lane, k]  -  sum over minus[o] of x[lane, k])
 *
 * LANES lanes at a time are packed side by side, so that every k of a list is one contiguous load. Strides are in
 * elements. Lists are padded to a multiple of 4 with the index `terms`, the panel's row of zeros. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef LANES
#define LANES 32
#endif
#define WIDTH 16
#define PARTS (LANES / WIDTH)
#define TILE 16

typedef float vec __attribute__((vector_size(WIDTH * sizeof(float))));

#if defined(__clang__) || __GNUC__ >= 12
/* Four rounds of interleaving rows i and i + 8 transpose a 16 x 16 tile. */
static inline void transpose(vec *v)
{
    vec w[WIDTH];
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < WIDTH / 2; i++) {
            w[2 * i] = __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            w[2 * i + 1] =
                __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(v, w, sizeof w);
    }
}
#else
static inline void transpose(vec *v)
{
    float w[WIDTH][WIDTH], *flat = (float *)v;
    memcpy(w, v, sizeof w);
    for (int i = 0; i < WIDTH; i++)
        for (int j = 0; j < WIDTH; j++)
            flat[i * WIDTH + j] = w[j][i];
}
#endif

static void pack(float *panel, const float *x, ptrdiff_t lane_stride, ptrdiff_t term_stride, int64_t lanes, int64_t terms)
{
    if (lanes < LANES)
        memset(panel, 0, (size_t)terms * LANES * sizeof(float));
    if (lane_stride == 1) {
        for (int64_t k = 0; k < terms; k++)
            memcpy(panel + k * LANES, x + k * term_stride, (size_t)lanes * sizeof(float));
    } else {
        int64_t whole = term_stride == 1 && lanes == LANES ? terms - terms % TILE : 0;
        for (int64_t k0 = 0; k0 < whole; k0 += TILE) {
            for (int p = 0; p < PARTS; p++) {
                vec v[WIDTH];
                for (int i = 0; i < WIDTH; i++)
                    memcpy(&v[i], x + (p * WIDTH + i) * lane_stride + k0, sizeof v[i]);
                transpose(v);
                for (int i = 0; i < WIDTH; i++)
                    memcpy(panel + (k0 + i) * LANES + p * WIDTH, &v[i], sizeof v[i]);
            }
        }
        for (int64_t k0 = whole; k0 < terms; k0 += TILE) {
            int64_t k1 = k0 + TILE < terms ? k0 + TILE : terms;
            for (int64_t lane = 0; lane < lanes; lane++) {
                const float *row = x + lane * lane_stride;
                for (int64_t k = k0; k < k1; k++)
                    panel[k * LANES + lane] = row[k * term_stride];
            }
        }
    }
    memset(panel + terms * LANES, 0, LANES * sizeof(float));
}

static inline void gather(vec *total, const float *panel, const uint16_t *index, const uint16_t *end)
{
    vec even[PARTS], odd[PARTS];
    memset(even, 0, sizeof even);
    memset(odd, 0, sizeof odd);
    for (; index < end; index += 4) {
        const vec *a = (const vec *)(panel + (size_t)index[0] * LANES);
        const vec *b = (const vec *)(panel + (size_t)index[1] * LANES);
        const vec *c = (const vec *)(panel + (size_t)index[2] * LANES);
        const vec *d = (const vec *)(panel + (size_t)index[3] * LANES);
        for (int p = 0; p < PARTS; p++) {
            even[p] += a[p];
            odd[p] += b[p];
        }
        for (int p = 0; p < PARTS; p++) {
            even[p] += c[p];
            odd[p] += d[p];
        }
    }
    for (int p = 0; p < PARTS; p++)
        total[p] = even[p] + odd[p];
}

/* Blocks first .. last - 1 of LANES lanes. Returns 0, or 1 without memory. */
int randlora_ternary(const float *x, ptrdiff_t x_lane, ptrdiff_t x_term, int64_t lanes, int64_t terms,
                     const int32_t *plus_start, const uint16_t *plus, const int32_t *minus_start, const uint16_t *minus,
                     int64_t outputs, float scale, const float *base, float *out, ptrdiff_t out_lane, ptrdiff_t out_o,
                     int64_t first, int64_t last)
{
    float *panel = aligned_alloc(64, (size_t)(terms + 1) * LANES * sizeof(float));
    if (!panel)
        return 1;
    float tile[TILE][LANES] __attribute__((aligned(64)));
    for (int64_t block = first; block < last; block++) {
        int64_t lane0 = block * LANES;
        int64_t here = lanes - lane0 < LANES ? lanes - lane0 : LANES;
        pack(panel, x + lane0 * x_lane, x_lane, x_term, here, terms);
        for (int64_t o0 = 0; o0 < outputs; o0 += TILE) {
            int64_t count = outputs - o0 < TILE ? outputs - o0 : TILE;
            for (int64_t i = 0; i < count; i++) {
                int64_t o = o0 + i;
                vec up[PARTS], down[PARTS];
                gather(up, panel, plus + plus_start[o], plus + plus_start[o + 1]);
                gather(down, panel, minus + minus_start[o], minus + minus_start[o + 1]);
                for (int p = 0; p < PARTS; p++) {
                    vec sum = (up[p] - down[p]) * scale;
                    memcpy(&tile[i][p * WIDTH], &sum, sizeof sum);
                }
            }
            if (out_lane == 1) {
                for (int64_t i = 0; i < count; i++) {
                    ptrdiff_t at = (o0 + i) * out_o + lane0;
                    for (int64_t lane = 0; lane < here; lane++)
                        out[at + lane] = base ? base[at + lane] + tile[i][lane] : tile[i][lane];
                }
            } else if (out_o == 1 && count == TILE && here == LANES) {
                for (int p = 0; p < PARTS; p++) {
                    vec v[WIDTH];
                    for (int i = 0; i < WIDTH; i++)
                        memcpy(&v[i], &tile[i][p * WIDTH], sizeof v[i]);
                    transpose(v);
                    for (int i = 0; i < WIDTH; i++) {
                        ptrdiff_t at = (lane0 + p * WIDTH + i) * out_lane + o0;
                        if (base) {
                            vec old;
                            memcpy(&old, base + at, sizeof old);
                            v[i] += old;
                        }
                        memcpy(out + at, &v[i], sizeof v[i]);
                    }
                }
            } else {
                for (int64_t lane = 0; lane < here; lane++) {
                    ptrdiff_t at = (lane0 + lane) * out_lane + o0 * out_o;
                    for (int64_t i = 0; i < count; i++)
                        out[at + i * out_o] = base ? base[at + i * out_o] + tile[i][lane] : tile[i][lane];
                }
            }
        }
    }
    free(panel);
    return 0;
}

int randlora_lanes(void)
{
    return LANES;
}
