/* Elements of a safetensors tensor as f32 or int64. Data may be unaligned, hence the memcpy of
 * every element (which compiles to a load). */
#include <string.h>

#include "base/assert.h"
#include "base/half.h"
#include "formats/st_dtype.h"

typedef struct {
    const char *name;
    MoeStDtype dtype;
    int bits;
} DtypeRow;

static const DtypeRow dtypes[] = {
    {"F64", MOE_ST_F64, 64},
    {"F32", MOE_ST_F32, 32},
    {"F16", MOE_ST_F16, 16},
    {"BF16", MOE_ST_BF16, 16},
    {"I64", MOE_ST_I64, 64},
    {"I32", MOE_ST_I32, 32},
    {"I16", MOE_ST_I16, 16},
    {"I8", MOE_ST_I8, 8},
    {"U8", MOE_ST_U8, 8},
    {"BOOL", MOE_ST_BOOL, 8},
    {"U16", MOE_ST_U16, 16},
    {"U32", MOE_ST_U32, 32},
    {"U64", MOE_ST_U64, 64},
    {"F8_E4M3", MOE_ST_OTHER, 8},
    {"F8_E5M2", MOE_ST_OTHER, 8},
    {"F8_E8M0", MOE_ST_OTHER, 8},
    {"F8_E4M3FNUZ", MOE_ST_OTHER, 8},
    {"F8_E5M2FNUZ", MOE_ST_OTHER, 8},
    {"F6_E2M3", MOE_ST_OTHER, 6},
    {"F6_E3M2", MOE_ST_OTHER, 6},
    {"F4", MOE_ST_OTHER, 4},
    {"C64", MOE_ST_OTHER, 64},
};
#define N_DTYPES (sizeof dtypes / sizeof *dtypes)

bool moe_st_dtype_parse(const char *name, MoeStDtype *out, int *out_bits) {
    for (size_t i = 0; i < N_DTYPES; i++)
        if (!strcmp(name, dtypes[i].name)) {
            *out = dtypes[i].dtype;
            *out_bits = dtypes[i].bits;
            return true;
        }
    return false;
}

static const DtypeRow *find_row(MoeStDtype d) {
    for (size_t i = 0; i < N_DTYPES; i++)
        if (dtypes[i].dtype == d && d != MOE_ST_OTHER)
            return &dtypes[i];
    return NULL;
}

const char *moe_st_dtype_name(MoeStDtype d) {
    const DtypeRow *row = find_row(d);
    return row ? row->name : "OTHER";
}

size_t moe_st_dtype_bytes(MoeStDtype d) {
    const DtypeRow *row = find_row(d);
    return row ? (size_t)row->bits / 8 : 0;
}

static void check_range(const MoeStTensor *t, int64_t first, int64_t n) {
    MOE_ASSERT(first >= 0 && n >= 0 && first <= t->elements && n <= t->elements - first,
               "tensor %s has %lld elements, asked for %lld from %lld", t->name,
               (long long)t->elements, (long long)n, (long long)first);
}

static MoeStatus wrong_dtype(const MoeStTensor *t, const char *expected) {
    return moe_error(MOE_E_INPUT, "%s: tensor \"%s\" has dtype %s, expected %s", t->file, t->name,
                     t->dtype == MOE_ST_OTHER
                         ? "that moec does not compute with (8 bits or fewer, or complex)"
                         : moe_st_dtype_name(t->dtype),
                     expected);
}

#define READ_LOOP(type, expression)                                                                \
    do {                                                                                           \
        const unsigned char *p_ = (const unsigned char *)t->data + (size_t)first * sizeof(type);   \
        for (int64_t i = 0; i < n; i++) {                                                          \
            type x;                                                                                \
            memcpy(&x, p_ + (size_t)i * sizeof x, sizeof x);                                       \
            out[i] = (expression);                                                                 \
        }                                                                                          \
    } while (0)

MoeStatus moe_st_read_f32(const MoeStTensor *t, int64_t first, int64_t n, float *out) {
    check_range(t, first, n);
    MOE_ASSERT(t->data || !n, "tensor %s is not mapped", t->name);
    if (t->dtype == MOE_ST_F32) {
        if (n)
            memcpy(out, (const unsigned char *)t->data + (size_t)first * 4, (size_t)n * 4);
    } else if (t->dtype == MOE_ST_F64) {
        READ_LOOP(double, (float)x);
    } else if (t->dtype == MOE_ST_F16) {
        READ_LOOP(uint16_t, moe_f16_to_f32(x));
    } else if (t->dtype == MOE_ST_BF16) {
        READ_LOOP(uint16_t, moe_bf16_to_f32(x));
    } else {
        return wrong_dtype(t, "F64, F32, F16 or BF16");
    }
    return NULL;
}

#define CHUNK_BYTES ((int64_t)64 << 10)

MoeStatus moe_st_pread_f32(MoeBlockFile *f, const MoeStTensor *t, int64_t first, int64_t n,
                           float *out) {
    char chunk[CHUNK_BYTES];
    int64_t width = (int64_t)moe_st_dtype_bytes(t->dtype);
    check_range(t, first, n);
    if (t->dtype == MOE_ST_F32)
        return moe_block_read(f, t->at + first * width, n * width, out);
    int64_t step = width ? CHUNK_BYTES / width : 1;
    for (int64_t i = 0; i < n; i += step) {
        MoeStTensor part = *t;
        part.elements = n - i < step ? n - i : step;
        part.data = chunk;
        if (width)
            MOE_TRY(moe_block_read(f, t->at + (first + i) * width, part.elements * width, chunk));
        MOE_TRY(moe_st_read_f32(&part, 0, part.elements, out + i));
    }
    return NULL;
}

MoeStatus moe_st_read_i64(const MoeStTensor *t, int64_t first, int64_t n, int64_t *out) {
    check_range(t, first, n);
    if (t->dtype == MOE_ST_I64) {
        READ_LOOP(int64_t, x);
    } else if (t->dtype == MOE_ST_I32) {
        READ_LOOP(int32_t, x);
    } else if (t->dtype == MOE_ST_I16) {
        READ_LOOP(int16_t, x);
    } else if (t->dtype == MOE_ST_I8) {
        READ_LOOP(int8_t, x);
    } else if (t->dtype == MOE_ST_U8) {
        READ_LOOP(uint8_t, x);
    } else if (t->dtype == MOE_ST_BOOL) {
        READ_LOOP(uint8_t, x != 0);
    } else if (t->dtype == MOE_ST_U16) {
        READ_LOOP(uint16_t, x);
    } else if (t->dtype == MOE_ST_U32) {
        READ_LOOP(uint32_t, x);
    } else if (t->dtype == MOE_ST_U64) {
        READ_LOOP(uint64_t, (int64_t)(x & INT64_MAX));
        for (int64_t i = 0; i < n; i++) {
            uint64_t x;
            memcpy(&x, (const unsigned char *)t->data + (size_t)(first + i) * 8, 8);
            if (x > INT64_MAX)
                return moe_error(MOE_E_INPUT,
                                 "%s: tensor \"%s\", element %lld: %llu does not fit int64",
                                 t->file, t->name, (long long)(first + i), (unsigned long long)x);
        }
    } else {
        return wrong_dtype(t, "an integer type");
    }
    return NULL;
}
