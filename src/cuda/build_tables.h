/* Filling the tables of src/cuda/tables.h from a placement. */
#ifndef LPLB_CUDA_BUILD_TABLES_H
#define LPLB_CUDA_BUILD_TABLES_H

#include <lplb/placement.h>

#include "base/error.h"
#include "cuda/tables.h"

/* Offsets for placements of at most these sizes; LPLB_UNSUPPORTED beyond the tables' limits. */
lplb_status lplb__cuda_size_tables(int32_t experts, int32_t slots, int32_t ranks,
                                   lplb__cuda_tables *tables);

/* Writes all sections to block (tables->bytes). speed [G] or NULL. Allocates while it works. */
lplb_status lplb__cuda_build_tables(const lplb__cuda_tables *tables,
                                    const lplb_placement *placement, int32_t layer,
                                    const int64_t *speed, unsigned char *block);

/* ---- lean.c ---- */

/* Groups that the lean tables have room for. */
int32_t lplb__cuda_lean_groups(int32_t ranks);
/* The lean sections, from the others. */
void lplb__cuda_build_lean(const lplb__cuda_tables *tables, unsigned char *block);

/* Warps of the interior-point kernel for each component, when the largest has a matrix of so many
 * rows. */
int32_t lplb__cuda_team_warps(int32_t rows);

#endif
