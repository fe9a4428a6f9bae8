#include <lplb/dispatch.h>

static const struct {
    int32_t bytes;
    const char *name;
} dtypes[] = {
    [LPLB_INT8] = {1, "int8"},       [LPLB_UINT8] = {1, "uint8"},
    [LPLB_INT16] = {2, "int16"},     [LPLB_UINT16] = {2, "uint16"},
    [LPLB_INT32] = {4, "int32"},     [LPLB_UINT32] = {4, "uint32"},
    [LPLB_INT64] = {8, "int64"},     [LPLB_UINT64] = {8, "uint64"},
    [LPLB_FLOAT16] = {2, "float16"}, [LPLB_FLOAT32] = {4, "float32"},
    [LPLB_FLOAT64] = {8, "float64"}, [LPLB_BOOL] = {1, "bool"},
};
enum { N_DTYPES = sizeof dtypes / sizeof dtypes[0] };

int32_t lplb_dtype_bytes(lplb_dtype dtype) {
    return (unsigned)dtype < N_DTYPES ? dtypes[dtype].bytes : 0;
}

const char *lplb_dtype_name(lplb_dtype dtype) {
    return (unsigned)dtype < N_DTYPES ? dtypes[dtype].name : "unknown";
}
