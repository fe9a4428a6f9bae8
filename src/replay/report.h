/* What the files of the report share. The report is one HTML file: text and the table of policies
 * are written as HTML, everything else is one JSON document that report/report.js draws. */
#ifndef LPLB_REPLAY_REPORT_H
#define LPLB_REPLAY_REPORT_H

#include <lplb/replay.h>
#include <stdio.h>

#include "io/output.h"

/* What is shown of a result. Long series are folded and, where even that is too much for one
 * file, only the most uneven layers keep their details. */
typedef struct lplb__report {
    const lplb_replay_result *result;
    FILE *out;
    int32_t baseline, best; /* policies; best = least mean imbalance among those with a placement */
    int32_t columns;        /* groups of consecutive measured batches, 1..200 */
    int32_t heat_rows;      /* groups of consecutive ranks, 1..256 */
    int32_t details;        /* layers with details */
    int32_t *detail;        /* [details] ascending rows of the result */
    int32_t worst_detail;   /* index into detail */
    int32_t placements;     /* nonzero: slots are few enough to be shown */
} lplb__report;

/* ---- report_text.c: everything that came from outside goes through these ---- */
void lplb__put_html(FILE *out, const char *text);   /* escaped for text and quoted attributes */
void lplb__put_string(FILE *out, const char *text); /* a JSON string that is safe inside <script> */
/* A JSON number with that many significant digits in any locale; null if not finite. */
void lplb__put_number(FILE *out, double value, int digits);
void lplb__put_grouped(FILE *out, int64_t value); /* 1,234,567 */
void lplb__put_fixed(FILE *out, double value, int decimals);
void lplb__put_headline(const lplb__report *report);
void lplb__put_table(const lplb__report *report);

/* ---- report_measure.c ---- */
/* Chooses baseline, best, columns, rows and layers; takes memory for detail. */
lplb_status lplb__report_measure(lplb__report *report);
/* ---- report_data.c: the JSON document, schema lplb.report/1 ---- */
lplb_status lplb__report_data(const lplb__report *report);

/* ---- report.c ---- */
/* report.html in dir, made if missing. */
lplb_status lplb__report_open(const char *dir, lplb__output *output);
void lplb__put_top(FILE *out, const char *title); /* up to <body><header> and the title in it */

/* ---- the parts of the page, made from src/replay/report by cmake/embed.cmake ---- */
extern const char lplb__report_html[], lplb__report_css[], lplb__report_charts_js[],
    lplb__report_js[], lplb__online_html[], lplb__online_js[];

#endif
