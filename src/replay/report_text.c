#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "replay/report.h"

/* Length of the valid UTF-8 sequence at text (Unicode 15, table 3-7), 0 if there is none. */
static int sequence_bytes(const unsigned char *text) {
    unsigned char first = text[0];
    if (first < 0x80) return 1;
    int bytes = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (!bytes || text[1] < low || text[1] > high) return 0;
    for (int i = 2; i < bytes; i++)
        if ((text[i] & 0xC0) != 0x80) return 0;
    return bytes;
}

/* Walks text in characters: *bytes > 0 valid, 0 = one byte that is no UTF-8. */
static const unsigned char *next_character(const unsigned char **text, int *bytes) {
    const unsigned char *at = *text;
    if (!*at) return NULL;
    *bytes = sequence_bytes(at);
    *text += *bytes ? *bytes : 1;
    return at;
}

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

void lplb__put_html(FILE *out, const char *text) {
    const unsigned char *at = (const unsigned char *)text, *c;
    int bytes;
    while ((c = next_character(&at, &bytes)) != NULL) {
        switch (*c) {
        case '&': fputs("&amp;", out); break;
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '"': fputs("&quot;", out); break;
        case '\'': fputs("&#39;", out); break;
        default:
            if (!bytes || *c == 0x7F || (*c < ' ' && *c != '\n' && *c != '\t'))
                fputs(replacement, out);
            else fwrite(c, 1, (size_t)bytes, out);
        }
    }
}

/* `<`, `>` and `&` are escaped too, so that no text can end the script element, and so are the two
 * line separators that JavaScript once forbade in strings. */
void lplb__put_string(FILE *out, const char *text) {
    const unsigned char *at = (const unsigned char *)text, *c;
    int bytes;
    fputc('"', out);
    while ((c = next_character(&at, &bytes)) != NULL) {
        if (!bytes) fputs("\\ufffd", out);
        else if (*c < ' ' || strchr("\"\\<>&\x7F", *c)) fprintf(out, "\\u%04x", *c);
        else if (bytes == 3 && !memcmp(c, "\xE2\x80\xA8", 3)) fputs("\\u2028", out);
        else if (bytes == 3 && !memcmp(c, "\xE2\x80\xA9", 3)) fputs("\\u2029", out);
        else fwrite(c, 1, (size_t)bytes, out);
    }
    fputc('"', out);
}

void lplb__put_number(FILE *out, double value, int digits) {
    if (!isfinite(value)) {
        fputs("null", out);
        return;
    }
    char text[40];
    snprintf(text, sizeof text, "%.*g", digits, value);
    for (char *c = text; *c; c++)
        if (!strchr("0123456789+-e", *c)) *c = '.'; /* the locale's decimal point */
    fputs(text, out);
}

/* A fixed number of decimals, in any locale. */
void lplb__put_fixed(FILE *out, double value, int decimals) {
    char text[400]; /* a double has at most 309 digits before the point */
    snprintf(text, sizeof text, "%.*f", decimals, value);
    for (char *c = text; *c; c++)
        if (!strchr("0123456789-", *c)) *c = '.';
    fputs(text, out);
}

void lplb__put_grouped(FILE *out, int64_t value) {
    char text[24];
    int n = snprintf(text, sizeof text, "%" PRId64, value);
    for (int i = 0; i < n; i++) {
        fputc(text[i], out);
        int left = n - 1 - i;
        if (left && left % 3 == 0 && text[i] != '-') fputc(',', out);
    }
}

/* The sentence that somebody who reads nothing else should take away. Time is taken as
 * proportional to tokens here; a prediction, where there is one, has its own sentence. */
void lplb__put_headline(const lplb__report *report) {
    const lplb_replay_result *r = report->result;
    const lplb_policy_result *from = &r->policy[report->baseline], *to = &r->policy[report->best];
    double before = from->imbalance.mean, after = to->imbalance.mean;
    FILE *out = report->out;
    fputs("<p class=\"headline\">", out);
    if (!(before > 0) || !(after > 0)) {
        fputs("The measured batches carry no load.</p>\n", out);
        return;
    }
    bool improves = from != to && after < before;
    fputs("Under <b>", out);
    lplb__put_html(out, improves ? to->policy : from->policy);
    fprintf(out, "</b> the fullest of %d ranks carries <b>", r->ranks);
    lplb__put_fixed(out, improves ? after : before, 3);
    fputs("</b> times the mean load", out);
    if (improves) {
        fputs(" instead of <b>", out);
        lplb__put_fixed(out, before, 3);
        fputs("</b> under <b>", out);
        lplb__put_html(out, from->policy);
        fputs("</b>: the slowest rank's expert work shrinks by ", out);
        lplb__put_fixed(out, 100 * (1 - after / before), 1);
        fputs("&nbsp;%.", out);
    } else {
        fputs(": ", out);
        lplb__put_fixed(out, 100 * (1 - 1 / before), 1);
        fputs("&nbsp;% of the ranks' expert time is waiting", out);
        fputs(r->policies > 1 ? ", and no other policy shown does better." : ".", out);
    }
    if (improves && from->has_prediction && to->has_prediction && from->tokens_per_s > 0) {
        fputs(" Predicted: ", out);
        lplb__put_grouped(out, llround(to->tokens_per_s));
        fputs(" tokens/s instead of ", out);
        lplb__put_grouped(out, llround(from->tokens_per_s));
        fputs(".", out);
    }
    fputs("</p>\n", out);
}

/* Which columns have something to say. */
typedef struct columns_shown {
    bool plan_time, tokens, time, memory;
} columns_shown;

static columns_shown find_columns(const lplb_replay_result *r) {
    columns_shown shown = {.tokens = r->topk > 0};
    for (int32_t p = 0; p < r->policies; p++) {
        const lplb_policy_result *policy = &r->policy[p];
        shown.plan_time |= policy->has_plan_time != 0;
        if (!policy->has_prediction) continue;
        shown.time |= policy->tokens_per_s > 0;
        shown.memory |= policy->redundant_bytes > 0;
    }
    return shown;
}

static void put_head(FILE *out, columns_shown shown) {
    fputs("<table><thead><tr><th>Policy</th><th>Imbalance<br>mean</th><th><br>p50</th>"
          "<th><br>p99</th><th><br>worst</th><th>Balanced-<br>ness</th>",
          out);
    if (shown.plan_time) fputs("<th>Plan, &micro;s<br>p50 (p99)</th>", out);
    fputs("<th>Placement<br>made in</th><th>Slots<br>moved</th>", out);
    if (shown.tokens) fputs("<th>Selections<br>off their rank</th>", out);
    if (shown.time) fputs("<th>Predicted<br>ms a layer</th><th>Predicted<br>tokens/s</th>", out);
    if (shown.memory) fputs("<th>Redundant<br>copies, MiB</th>", out);
    fputs("</tr></thead><tbody>\n", out);
}

/* A cell; has = 0 leaves it to a dash. */
static void put_cell(FILE *out, bool has, double value, int decimals, const char *unit) {
    fputs("<td>", out);
    if (has) {
        lplb__put_fixed(out, value, decimals);
        fputs(unit, out);
    } else {
        fputs("&ndash;", out);
    }
    fputs("</td>", out);
}

static void put_duration(FILE *out, bool has, double seconds) {
    if (seconds < 1e-3) put_cell(out, has, 1e6 * seconds, 0, " &micro;s");
    else if (seconds < 1) put_cell(out, has, 1e3 * seconds, 1, " ms");
    else put_cell(out, has, seconds, 2, " s");
}

static int64_t count_selections(const lplb_replay_result *r) {
    int64_t total = 0;
    for (int64_t i = 0; i < r->layers * r->measured * r->experts; i++) total += r->counts[i];
    return total;
}

static void put_row(const lplb__report *report, int32_t p, columns_shown shown,
                    int64_t selections) {
    const lplb_policy_result *policy = &report->result->policy[p];
    FILE *out = report->out;
    bool placed = policy->placement != NULL;
    double share = 100.0 / (double)(selections > 0 ? selections : 1);
    fprintf(out, "<tr%s><td>", p == report->best ? " class=\"best\"" : "");
    lplb__put_html(out, policy->policy);
    fputs("</td>", out);
    const lplb_distribution *d = &policy->imbalance;
    bool loaded = d->mean > 0;
    put_cell(out, loaded, d->mean, 4, "");
    put_cell(out, loaded, d->p50, 4, "");
    put_cell(out, loaded, d->p99, 4, "");
    put_cell(out, loaded, d->max, 4, "");
    put_cell(out, loaded, policy->balancedness, 4, "");
    if (shown.plan_time && policy->has_plan_time) {
        fputs("<td>", out);
        lplb__put_fixed(out, policy->plan_us_p50, 1);
        fputs(" (", out);
        lplb__put_fixed(out, policy->plan_us_p99, 1);
        fputs(")</td>", out);
    } else if (shown.plan_time) {
        put_cell(out, false, 0, 0, "");
    }
    put_duration(out, placed, policy->place_seconds);
    put_cell(out, placed, (double)policy->moved_slots, 0, "");
    if (shown.tokens) put_cell(out, placed, (double)policy->moved_tokens * share, 1, " %");
    if (shown.time) {
        bool has = policy->has_prediction && policy->tokens_per_s > 0;
        put_cell(out, has, policy->ms_per_layer, 4, "");
        put_cell(out, has, policy->tokens_per_s, 0, "");
    }
    if (shown.memory)
        put_cell(out, policy->has_prediction && placed, (double)policy->redundant_bytes / (1 << 20),
                 1, "");
    fputs("</tr>\n", out);
}

void lplb__put_table(const lplb__report *report) {
    columns_shown shown = find_columns(report->result);
    int64_t selections = count_selections(report->result);
    put_head(report->out, shown);
    for (int32_t p = 0; p < report->result->policies; p++) put_row(report, p, shown, selections);
    fputs("</tbody></table>", report->out);
}
