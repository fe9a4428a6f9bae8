/* Linkage of the public functions. */
#ifndef LPLB_EXPORT_H
#define LPLB_EXPORT_H

#if defined(_WIN32)
#define LPLB_API
#else
#define LPLB_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
#define LPLB_BEGIN_DECLS extern "C" {
#define LPLB_END_DECLS   }
#else
#define LPLB_BEGIN_DECLS
#define LPLB_END_DECLS
#endif

#endif
