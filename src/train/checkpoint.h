/* Checkpoints: one safetensors file a step in logical order (experts by number, not by slot), so
 * that any number of ranks can read it, and a manifest that names the latest and its checksum.
 * Files appear whole or not at all; the manifest is written last. docs/formats.md, "checkpoint". */
#ifndef LPLB_TRAIN_CHECKPOINT_H
#define LPLB_TRAIN_CHECKPOINT_H

#include "train/identity.h"

/* By the leader before anything is trained: makes FOLDER and sees that it can be written.
 * LPLB_INVALID when it has a checkpoint and the run does not resume: that would mix two runs. step:
 * the one to resume from, 0 = the latest. */
lplb_status checkpoint_prepare(const char *folder, bool resumes, int64_t step);

/* All ranks call; rank 0 of the world writes FOLDER/step-00000012.safetensors and latest.json, and
 * then removes all checkpoints of earlier steps but one. */
lplb_status checkpoint_save(trainer *t, const char *folder);

/* The step of FOLDER's latest checkpoint, or -1 if there is none. LPLB_FORMAT when there are
 * checkpoints, but nothing that tells the latest; the message names the newest that is whole. */
lplb_status checkpoint_latest(const char *folder, int64_t *step);

/* Loads FOLDER's checkpoint of this step, 0 = the latest; every rank reads what it needs. Weights,
 * moments, selection bias, step and, where ranks and slots are as they were, the placement: then
 * training goes on as if it had never stopped. LPLB_FORMAT when the file is damaged (the message
 * names the newest that is whole) or of another model. same_run: LPLB_INVALID when seed, text,
 * batch or context are not what they were. changes: what else is otherwise than it was, "" =
 * nothing; may be NULL. */
lplb_status checkpoint_load(trainer *t, const char *folder, int64_t step, bool same_run,
                            char changes[CHANGES_BYTES]);

/* The model that FOLDER's checkpoint of this step, 0 = the latest, is of; fields that its function
 * does not depend on stay as they are in *out. */
lplb_status checkpoint_model(const char *folder, int64_t step, model_config *out);

/* Weights alone, by the names that PyTorch's users know (docs/formats.md). All ranks call. */
lplb_status weights_save(trainer *t, const char *path);
/* Every tensor of the model must be there in its shape, as F64, F32, F16 or BF16, and no other. */
lplb_status weights_load(trainer *t, const char *path);

#endif
