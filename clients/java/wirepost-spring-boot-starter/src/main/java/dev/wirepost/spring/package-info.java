/**
 * The service side of wirepost with Spring Boot: {@link dev.wirepost.spring.WirepostListener} handles clients' messages,
 * {@link dev.wirepost.spring.WirepostTemplate} pushes, {@link dev.wirepost.spring.WirepostTokens} lets clients in.
 *
 * <p>Everything public here may be used by several threads at the same time. {@code null} is what is absent.
 */
package dev.wirepost.spring;
