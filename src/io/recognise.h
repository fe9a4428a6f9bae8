/* What a file is, from its first bytes. */
#ifndef LPLB_IO_RECOGNISE_H
#define LPLB_IO_RECOGNISE_H

#include "io/input.h"

typedef enum lplb__content {
    LPLB__NPY,
    LPLB__ZIP,
    LPLB__SAFETENSORS,
    LPLB__JSON,
    LPLB__TEXT /* CSV or YAML */
} lplb__content;

/* LPLB_FORMAT for empty and binary files, LPLB_UNSUPPORTED for torch.save files. */
lplb_status lplb__recognise(const lplb__input *input, lplb__content *out);

#endif
