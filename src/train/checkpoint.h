/* Checkpoints: one safetensors file a step in logical order (experts by number, not by slot), so
 * that any number of ranks can read it, and a manifest that names the latest and its checksum.
 * Files appear whole or not at all; the manifest is written last. docs/formats.md, "checkpoint". */
#ifndef LPLB_TRAIN_CHECKPOINT_H
#define LPLB_TRAIN_CHECKPOINT_H

#include "train/trainer.h"

/* All ranks call; rank 0 of the world writes FOLDER/step-XXXXXXXX.safetensors and latest.json, and
 * then removes the checkpoint before the last. */
lplb_status checkpoint_save(trainer *t, const char *folder);

/* The step of FOLDER's latest checkpoint, or -1 if there is none. */
lplb_status checkpoint_latest(const char *folder, int64_t *step);

/* Loads FOLDER's latest checkpoint; every rank reads what it needs. Weights, moments, selection
 * bias, step and, where ranks and slots are as they were, the placement: then training goes on as
 * if it had never stopped. LPLB_FORMAT when the file is damaged or of another model, with the
 * reason. */
lplb_status checkpoint_load(trainer *t, const char *folder);

#endif
