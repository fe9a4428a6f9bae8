/* What a checkpoint says of the model and the run it is of, as "key=value" words, and how another
 * one differs. */
#ifndef LPLB_TRAIN_IDENTITY_H
#define LPLB_TRAIN_IDENTITY_H

#include "train/trainer.h"

enum { IDENTITY_BYTES = 512, CHANGES_BYTES = 600 };

/* What the shapes of the tensors do not tell, but the model's function depends on. */
void identity_model(const model_config *c, char text[IDENTITY_BYTES]);
/* Fields that are not in the text stay as they are. LPLB_FORMAT when it is not of a model. */
lplb_status identity_read_model(const char *text, model_config *c);

/* What decides how a step changes the weights, besides the model and its text. */
void identity_training(const trainer_config *c, char text[IDENTITY_BYTES]);

/* Appends "heads was 2 and is 4, topk was ..." for every word that differs; `out` is terminated and
 * has room for `bytes`, which long lists are cut to. True if there was any. */
bool identity_differences(const char *theirs, const char *ours, char *out, size_t bytes);

#endif
