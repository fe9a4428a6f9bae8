#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "base/version.h"
#include "replay/report.h"

/* Nothing but this file may be loaded, whatever a title or a policy's name tries. */
static const char security[] =
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n";

static void put_facts(const lplb__report *report) {
    const lplb_replay_result *r = report->result;
    FILE *out = report->out;
    fprintf(out, "<p class=\"facts\">%d ranks", r->ranks);
    if (r->nodes > 1) fprintf(out, " on %d nodes", r->nodes);
    fprintf(out, ", %d slots for %d experts, %d layer%s", r->slots, r->experts, r->layers,
            r->layers == 1 ? "" : "s");
    if (r->topk) fprintf(out, ", top-%d", r->topk);
    if (r->tokens) {
        fputs("; ", out);
        lplb__put_grouped(out, r->tokens);
        fputs(" tokens in batches of ", out);
        lplb__put_grouped(out, r->batch_tokens);
    }
    fputs("; ", out);
    lplb__put_grouped(out, r->batches);
    fputs(" batches, the first ", out);
    lplb__put_grouped(out, r->batches - r->measured);
    fputs(" as history, the last ", out);
    lplb__put_grouped(out, r->measured);
    fputs(" measured. lplb " LPLB_VERSION "</p>\n", out);
}

void lplb__put_top(FILE *out, const char *title) {
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n", out);
    fputs(security, out);
    fputs("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>", out);
    lplb__put_html(out, title);
    fprintf(out, "</title>\n<style>\n%s</style>\n</head>\n<body>\n<header>\n<h1>",
            lplb__report_css);
    lplb__put_html(out, title);
    fputs("</h1>\n", out);
}

static lplb_status put_page(const lplb__report *report, const char *title) {
    FILE *out = report->out;
    lplb__put_top(out, title);
    lplb__put_headline(report);
    put_facts(report);
    fputs("</header>\n", out);

    static const char mark[] = "@TABLE@";
    const char *table = strstr(lplb__report_html, mark);
    fwrite(lplb__report_html, 1, (size_t)(table - lplb__report_html), out);
    lplb__put_table(report);
    fputs(table + sizeof mark - 1, out);

    fputs("<script type=\"application/json\" id=\"data\">", out);
    LPLB_TRY(lplb__report_data(report));
    fprintf(out, "</script>\n<script>\n%s</script>\n<script>\n%s</script>\n</body>\n</html>\n",
            lplb__report_charts_js, lplb__report_js);
    return LPLB_OK;
}

lplb_status lplb__report_open(const char *dir, lplb__output *output) {
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return LPLB_FAIL(LPLB_IO, "cannot make the folder %s: %s", dir, strerror(errno));
    size_t bytes = strlen(dir) + sizeof "/report.html";
    char *path = lplb__malloc(bytes);
    if (!path) return LPLB_FAIL(LPLB_NO_MEMORY, "cannot allocate %zu bytes", bytes);
    snprintf(path, bytes, "%s/report.html", dir);
    lplb_status status = lplb__output_open(path, output);
    lplb__free(path);
    return status;
}

static lplb_status write_report(lplb__report *report, const char *title, const char *dir) {
    lplb__output output;
    LPLB_TRY(lplb__report_open(dir, &output));
    report->out = output.file;
    lplb_status status = put_page(report, title);
    if (status == LPLB_OK) return lplb__output_commit(&output);
    lplb__output_abort(&output);
    return status;
}

lplb_status lplb_report_write(const lplb_replay_result *result, const char *title,
                              const char *dir) {
    if (!result || !title || !dir || !*dir)
        return LPLB_FAIL(LPLB_INVALID, "result, title and dir are all needed");
    if (result->policies < 1 || result->measured < 1 || result->layers < 1)
        return LPLB_FAIL(LPLB_INVALID, "nothing to report: %d policies, %lld batches, %d layers",
                         result->policies, (long long)result->measured, result->layers);
    lplb__report report = {.result = result};
    lplb_status status = lplb__report_measure(&report);
    if (status == LPLB_OK) status = write_report(&report, title, dir);
    lplb__free(report.detail);
    return status;
}
