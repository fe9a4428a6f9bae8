/* The page of an online replay: what each policy reached over time, and how much it moved. */
#include <lplb/online.h>
#include <string.h>

#include "replay/report.h"

static void put_facts(FILE *out, const lplb_online_result *r) {
    fprintf(out, "<p class=\"facts\">%d ranks", r->ranks);
    if (r->nodes > 1) fprintf(out, " on %d nodes", r->nodes);
    fprintf(out, ", %d slots for %d experts, %d layer%s; ", r->slots, r->experts, r->layers,
            r->layers == 1 ? "" : "s");
    lplb__put_grouped(out, r->steps);
    fputs(" steps", out);
    if (r->batch_tokens) {
        fputs(" of ", out);
        lplb__put_grouped(out, r->batch_tokens);
        fputs(" tokens", out);
    }
    fputs(", the last ", out);
    lplb__put_grouped(out, r->measured);
    fputs(" measured.</p>\n", out);
}

/* Least mean imbalance; -1 without load. */
static int32_t find_best(const lplb_online_result *r) {
    int32_t best = -1;
    for (int32_t p = 0; p < r->policies; p++) {
        double mean = r->policy[p].imbalance.mean;
        if (mean > 0 && (best < 0 || mean < r->policy[best].imbalance.mean)) best = p;
    }
    return best;
}

static void put_headline(FILE *out, const lplb_online_result *r, int32_t best) {
    fputs("<p class=\"headline\">", out);
    if (best < 0) {
        fputs("The measured steps carry no load.</p>\n", out);
        return;
    }
    fputs("<b>", out);
    lplb__put_html(out, r->policy[best].policy);
    fputs("</b> keeps the fullest rank at <b>", out);
    lplb__put_fixed(out, r->policy[best].imbalance.mean, 3);
    fputs("</b> times the mean load with ", out);
    lplb__put_grouped(out, r->policy[best].moved_slots);
    fputs(" moves.</p>\n", out);
}

static void put_number_cell(FILE *out, double value, int decimals, const char *unit) {
    fputs("<td>", out);
    lplb__put_fixed(out, value, decimals);
    fprintf(out, "%s</td>", unit);
}

static void put_count_cell(FILE *out, int64_t value) {
    fputs("<td>", out);
    lplb__put_grouped(out, value);
    fputs("</td>", out);
}

static void put_table(FILE *out, const lplb_online_result *r, int32_t best) {
    double slots = (double)r->slots * r->layers;
    fputs("<table><thead><tr><th>Policy</th><th>Imbalance<br>mean</th><th><br>p99</th>"
          "<th><br>worst</th><th>Balanced-<br>ness</th><th>Rearrange-<br>ments</th>"
          "<th>Slots<br>moved</th><th>of all<br>slots</th><th>Placing<br>took, s</th>"
          "<th>Steps<br>waited, s</th></tr></thead>"
          "<tbody>\n",
          out);
    for (int32_t i = 0; i < r->policies; i++) {
        const lplb_online_policy *p = &r->policy[i];
        fprintf(out, "<tr%s><td>", i == best ? " class=\"best\"" : "");
        lplb__put_html(out, p->policy);
        fputs("</td>", out);
        put_number_cell(out, p->imbalance.mean, 4, "");
        put_number_cell(out, p->imbalance.p99, 3, "");
        put_number_cell(out, p->imbalance.max, 3, "");
        put_number_cell(out, p->balancedness, 4, "");
        put_count_cell(out, p->rearrangements);
        put_count_cell(out, p->moved_slots);
        put_number_cell(out, 100 * (double)p->moved_slots / slots, 1, " %");
        put_number_cell(out, p->place_seconds, 2, "");
        put_number_cell(out, p->wait_seconds, 3, "");
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table>", out);
}

static void put_policy_data(FILE *out, const lplb_online_result *r, const lplb_online_policy *p) {
    fputs("{\"name\":", out);
    lplb__put_string(out, p->policy);
    fputs(",\"placement\":", out);
    lplb__put_string(out, p->placement_name);
    fputs(",\"solver\":", out);
    lplb__put_string(out, p->solver_name);
    fputs(",\"mean\":", out);
    lplb__put_number(out, p->imbalance.mean, 6);
    fputs(",\"imbalance\":[", out);
    for (int32_t i = 0; i < r->points; i++) {
        if (i) fputc(',', out);
        if (p->curve[i] > 0) lplb__put_number(out, p->curve[i], 5);
        else fputs("null", out);
    }
    fputs("],\"moves\":[", out);
    for (int32_t i = 0; i < r->points; i++)
        fprintf(out, "%s%lld", i ? "," : "", (long long)p->curve_moves[i]);
    fputs("]}", out);
}

static void put_data(FILE *out, const lplb_online_result *r) {
    fprintf(out, "{\"schema\":\"lplb.report_online/1\",\"steps\":%lld,\"slots\":%lld,\"step\":[",
            (long long)r->steps, (long long)r->slots * r->layers);
    for (int32_t i = 0; i < r->points; i++)
        fprintf(out, "%s%lld", i ? "," : "", (long long)r->point_step[i]);
    fputs("],\"policies\":[", out);
    for (int32_t i = 0; i < r->policies; i++) {
        if (i) fputs(",\n", out);
        put_policy_data(out, r, &r->policy[i]);
    }
    fputs("]}", out);
}

static void put_page(FILE *out, const lplb_online_result *r, const char *title) {
    static const char mark[] = "@TABLE@";
    int32_t best = find_best(r);
    lplb__put_top(out, title);
    put_headline(out, r, best);
    put_facts(out, r);
    fputs("</header>\n", out);
    const char *table = strstr(lplb__online_html, mark);
    fwrite(lplb__online_html, 1, (size_t)(table - lplb__online_html), out);
    put_table(out, r, best);
    fputs(table + sizeof mark - 1, out);
    fputs("<script type=\"application/json\" id=\"data\">", out);
    put_data(out, r);
    fprintf(out, "</script>\n<script>\n%s</script>\n<script>\n%s</script>\n</body>\n</html>\n",
            lplb__report_charts_js, lplb__online_js);
}

lplb_status lplb_online_report_write(const lplb_online_result *result, const char *title,
                                     const char *dir) {
    if (!result || !title || !dir || !*dir)
        return LPLB_FAIL(LPLB_INVALID, "result, title and dir are all needed");
    if (result->policies < 1 || result->points < 1)
        return LPLB_FAIL(LPLB_INVALID, "nothing to report: %d policies, %lld steps",
                         result->policies, (long long)result->steps);
    lplb__output output;
    LPLB_TRY(lplb__report_open(dir, &output));
    put_page(output.file, result, title);
    return lplb__output_commit(&output);
}
