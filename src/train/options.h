/* The options of a training run, declared once: configuration files, flags, --help and the dump of
 * a checkpoint all come from one table. */
#ifndef LPLB_TRAIN_OPTIONS_H
#define LPLB_TRAIN_OPTIONS_H

#include <stdio.h>

#include "train/trainer.h"

enum { PATH_BYTES = 512, OPTIONS_MOST = 96 };

typedef struct run_options {
    trainer_config trainer;
    char text[PATH_BYTES];  /* see text.h */
    double held_out;        /* fraction of the text kept for validation */
    int64_t validate_every; /* steps, 0 = only at the end */
    int64_t validate_sequences;
    char solver[64];
    char checkpoint[PATH_BYTES]; /* folder, "" = none */
    int64_t checkpoint_every;    /* steps, 0 = only at the end */
    int32_t resume;              /* go on from the folder's latest checkpoint if there is one */
    int32_t resume_changed;      /* even if seed, text, batch or context are not as they were */
    int64_t checkpoint_step;     /* of the one to take, 0 = the latest */
    char init[PATH_BYTES];       /* safetensors file with the weights to begin with */
    char export_to[PATH_BYTES];  /* write the checkpoint's weights there instead of training */
    char record_routing[PATH_BYTES];
    int64_t record_tokens;     /* at most, 0 = all */
    char generate[PATH_BYTES]; /* prompt */
    int64_t generate_bytes;
    double temperature;
    char log[PATH_BYTES]; /* JSON lines, one a step */
    int32_t metrics_port; /* HTTP on rank 0, 0 = any free one, -1 = none */
    char metrics_address[64];
    char event_log[PATH_BYTES], chrome_trace[PATH_BYTES];
    int32_t json;             /* summary as JSON on stdout */
    int32_t plan_memory;      /* print what the run needs of memory instead of training */
    bool given[OPTIONS_MOST]; /* by option: not the default, but said by flag or file */
} run_options;

void run_options_default(run_options *o);

/* Sets one option by its name ("layers" or "model.layers"); LPLB_INVALID names what is wrong. */
lplb_status run_options_set(run_options *o, const char *name, const char *value);
/* A YAML file of sections: "model:\n  layers: 4\n". LPLB_FORMAT with line and column. */
lplb_status run_options_read(run_options *o, const char *path);
/* The same from an open stream; `path` names it in messages. */
lplb_status run_options_read_stream(run_options *o, const char *path, FILE *file);
/* Ranges and combinations; fills what follows from others. */
lplb_status run_options_check(run_options *o);

/* The options of the model that were not given become those of `stored`. */
void run_options_adopt_model(run_options *o, const model_config *stored);

/* "  --layers N   ..." lines. */
void run_options_help(FILE *out);
/* True if the option of this name takes no value on the command line. */
bool run_options_is_flag(const char *name);
/* The YAML that run_options_read would take. */
void run_options_write(const run_options *o, FILE *out);

#endif
