/* Checkpoints: one safetensors file a step in logical order (experts by number, not by slot), so
 * that any number of ranks can read it, and a manifest that names the latest and its checksum.
 * Files appear whole or not at all; the manifest is written last. docs/formats.md, "checkpoint". */
#ifndef LPLB_TRAIN_CHECKPOINT_H
#define LPLB_TRAIN_CHECKPOINT_H

#include "train/trainer.h"

/* By the leader before anything is trained: makes FOLDER and sees that it can be written.
 * LPLB_INVALID when it has a checkpoint and the run does not resume: that would mix two runs. */
lplb_status checkpoint_prepare(const char *folder, bool resumes);

/* All ranks call; rank 0 of the world writes FOLDER/step-00000012.safetensors and latest.json, and
 * then removes all checkpoints of earlier steps but one. */
lplb_status checkpoint_save(trainer *t, const char *folder);

/* The step of FOLDER's latest checkpoint, or -1 if there is none. */
lplb_status checkpoint_latest(const char *folder, int64_t *step);

/* Loads FOLDER's latest checkpoint; every rank reads what it needs. Weights, moments, selection
 * bias, step and, where ranks and slots are as they were, the placement: then training goes on as
 * if it had never stopped. LPLB_FORMAT when the file is damaged or of another model, with the
 * reason. same_run: LPLB_INVALID when seed, text, batch or context are not what they were. */
lplb_status checkpoint_load(trainer *t, const char *folder, bool same_run);

/* The model that FOLDER's latest checkpoint is of; fields that its function does not depend on stay
 * as they are in *out. */
lplb_status checkpoint_model(const char *folder, model_config *out);

/* Weights alone, by the names that PyTorch's users know (docs/formats.md). All ranks call. */
lplb_status weights_save(trainer *t, const char *path);
/* Every tensor of the model must be there in its shape, as F64, F32, F16 or BF16, and no other. */
lplb_status weights_load(trainer *t, const char *path);

#endif
